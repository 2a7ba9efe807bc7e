"""qwen2: what it adds to llama."""

import pytest
import torch

import hf_posswap
from hf_posswap.errors import UnsupportedError
from tests.matrix.cells import random_tokens, small_model


def test_layers_with_a_sliding_window_are_refused_and_nothing_changes():
    model = small_model("qwen2", True, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    tokens = random_tokens(1, 24)
    before = model(tokens).logits
    with pytest.raises(UnsupportedError, match=r"layers \[1, 2\] of this qwen2 model.*use_sliding_window=False"):
        hf_posswap.swap(model, "alibi")
    assert not hf_posswap.is_swapped(model)
    assert torch.equal(model(tokens).logits, before)


def test_the_biases_of_the_projections_take_part():
    tokens = random_tokens(1, 24)
    model = hf_posswap.swap(small_model("qwen2", True), "alibi")
    before = model(tokens).logits
    with torch.no_grad():
        for _, attention in hf_posswap.architectures.architectures.get("qwen2").attention_modules(model.base_model):
            attention.q_proj.bias += 1
    assert (model(tokens).logits - before).abs().max() > 1e-2

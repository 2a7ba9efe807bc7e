"""Token embeddings of a swapped model: resized, exchanged, tied."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from tests.matrix.cells import VOCABULARY, random_tokens, small_model

CASES = [(architecture, scheme) for architecture in ("gpt2", "bert", "llama") for scheme in ("alibi", "sinusoidal")]


def swapped(architecture: str, scheme: str) -> Any:
    return hf_posswap.swap(small_model(architecture, architecture != "bert", tie_word_embeddings=True), scheme)


@pytest.mark.parametrize(("architecture", "scheme"), CASES)
def test_resized(architecture: str, scheme: str, tmp_path: Path) -> None:
    model, tokens = swapped(architecture, scheme), random_tokens(2, 12)
    with torch.no_grad():
        expected = model(tokens).logits
        model.resize_token_embeddings(VOCABULARY + 7)
        model.save_pretrained(tmp_path)
        auto = transformers.AutoModelForMaskedLM if architecture == "bert" else transformers.AutoModelForCausalLM
        for twin in (model, auto.from_pretrained(tmp_path).eval()):
            assert twin.config.vocab_size == VOCABULARY + 7
            logits = twin(tokens).logits
            torch.testing.assert_close(logits[..., :VOCABULARY], expected, atol=1e-5, rtol=1e-5)
            assert logits.shape[-1] == VOCABULARY + 7
            assert twin(torch.full((1, 4), VOCABULARY + 6)).logits.isfinite().all()
        hf_posswap.restore(model)
        assert model(tokens).logits.shape[-1] == VOCABULARY + 7


@pytest.mark.parametrize(("architecture", "scheme"), CASES)
def test_exchanged(architecture: str, scheme: str) -> None:
    model, tokens = swapped(architecture, scheme), random_tokens(2, 12)
    other = torch.nn.Embedding(VOCABULARY, model.config.hidden_size)
    with torch.no_grad():
        before = model(tokens).logits
        model.set_input_embeddings(other)
        assert model.get_input_embeddings() is other
        model.tie_weights()
        after = model(tokens).logits
        assert (after - before).abs().max() > 1e-3
        hf_posswap.restore(model)
        assert model.get_input_embeddings() is other


@pytest.mark.parametrize(("architecture", "scheme"), CASES)
def test_tied(architecture: str, scheme: str, tmp_path: Path) -> None:
    model = swapped(architecture, scheme)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    auto = transformers.AutoModelForMaskedLM if architecture == "bert" else transformers.AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    loaded(random_tokens(1, 8), labels=random_tokens(1, 8)).loss.backward()
    assert loaded.get_input_embeddings().weight.grad.abs().sum() > 0

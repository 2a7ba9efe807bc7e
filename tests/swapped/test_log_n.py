"""The option `log_n` of every scheme: queries that see more keys than the train length are scaled by ln n/ln T."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import hf_posswap
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.ramp import set_ramp
from tests.matrix.cells import TRAIN_LENGTH, Cell, random_tokens, small_model
from tests.swapped.invariants import check_decoding, check_invariants

LENGTH = TRAIN_LENGTH + 24
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
CELLS = [
    Cell(architecture, causal, hf_posswap.parse_scheme(text), text)
    for architecture, causal, text in (
        ("gpt2", True, "alibi:log_n=true"),
        ("llama", True, "rope:log_n=true"),
        ("llama", True, "none:layers=0+2:log_n=true,t5:window=7"),
        ("gemma3_text", True, "alibi:log_n=true"),
        ("bert", False, "t5:log_n=true"),
    )
]


def scaled_sdpa(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
    """Stock attention whose queries are scaled as the formula says, for a causal text without padding."""
    factors = [max(1.0, math.log(i + 1) / math.log(TRAIN_LENGTH)) for i in range(query.shape[2])]
    return sdpa_attention_forward(module, query * torch.tensor(factors)[:, None], *args, **kwargs)


AttentionInterface.register("log_n_in_a_test", scaled_sdpa)


@torch.no_grad()
def test_a_stock_model_with_log_n_equals_stock_attention_with_scaled_queries() -> None:
    tokens = random_tokens(1, LENGTH)
    stock = small_model("llama", True)
    plain = stock(tokens).logits
    model = hf_posswap.swap(small_model("llama", True), "none:keep_native=true:log_n=true")
    found = model(tokens).logits
    stock.config._attn_implementation = "log_n_in_a_test"
    expected = stock(tokens).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    assert torch.equal(found[:, :TRAIN_LENGTH], model(tokens[:, :TRAIN_LENGTH]).logits)
    torch.testing.assert_close(found[:, :TRAIN_LENGTH], plain[:, :TRAIN_LENGTH], **CLOSE)
    assert not torch.allclose(found[:, TRAIN_LENGTH:], plain[:, TRAIN_LENGTH:], atol=1e-4)


@torch.no_grad()
def test_an_encoder_scales_all_queries_by_the_length_of_their_own_text() -> None:
    models = [hf_posswap.swap(small_model("bert", False), f"alibi{text}") for text in ("", ":log_n=true")]
    lengths = (LENGTH, TRAIN_LENGTH - 5)
    tokens = random_tokens(2, LENGTH)
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    batch = [model(tokens, attention_mask=mask).logits for model in models]
    for row, length in enumerate(lengths):
        alone = models[1](tokens[row : row + 1, :length]).logits
        torch.testing.assert_close(batch[1][row : row + 1, :length], alone, **CLOSE)
    torch.testing.assert_close(batch[0][1, : lengths[1]], batch[1][1, : lengths[1]], **CLOSE)
    assert not torch.allclose(batch[0][0], batch[1][0], atol=1e-3)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_invariants(cell: Cell, tmp_path: Path) -> None:
    check_invariants(cell, tmp_path)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.causal], ids=str)
def test_cached_equals_uncached(cell: Cell) -> None:
    check_decoding(cell)


@torch.no_grad()
def test_a_ramp_scales_by_a_power_of_the_factor() -> None:
    tokens, stock = random_tokens(1, LENGTH), small_model("llama", True)
    model = hf_posswap.swap(small_model("llama", True), "alibi:log_n=true")
    full = model(tokens).logits
    set_ramp(model, 0.0)
    torch.testing.assert_close(model(tokens).logits, stock(tokens).logits, **CLOSE)
    set_ramp(model, 1.0)
    torch.testing.assert_close(model(tokens).logits, full, **CLOSE)


def test_schemes_at_the_embeddings_have_no_queries_to_scale() -> None:
    with pytest.raises(SchemeConfigError, match="none:keep_native=true:log_n=true"):
        hf_posswap.swap(small_model("gpt2", True), "learned:log_n=true")


def test_it_is_saved_and_not_exported(tmp_path: Path) -> None:
    model = hf_posswap.swap(small_model("llama", True), "rope:log_n=true")
    assert model.config.pos_scheme["options"]["log_n"] is True
    with pytest.raises(UnsupportedError, match="log_n"):
        hf_posswap.export_native(model, tmp_path)

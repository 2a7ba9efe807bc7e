"""Invariant 5: with a cache, token by token or in chunks, the model computes what it computes without."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import hf_posswap
from hf_posswap.common.positions import Positions
from hf_posswap.errors import PositionError
from tests.matrix.cells import TRAIN_LENGTH, Cell, default_cells, given, random_tokens, small_model, supported_cells

CAUSAL = [cell for cell in supported_cells() if cell.causal]
DEFAULT_CAUSAL = [cell for cell in default_cells() if cell.causal]
LENGTH = 24
"""Below the train length, so that schemes that look at the text's length keep to one set of angles."""


def decode(model: Any, tokens: torch.Tensor, chunks: list[int], cache: Any) -> torch.Tensor:
    """Logits of all tokens, fed to the model in chunks."""
    parts, start = [], 0
    cached = given(model, cache)
    with torch.no_grad():
        for chunk in chunks:
            out = model(tokens[:, start : start + chunk], use_cache=True, **cached)
            parts.append(out.logits)
            start += chunk
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("cell", CAUSAL, ids=str)
@pytest.mark.parametrize("chunks", [[1] * LENGTH, [10, 1, 1, 12], [7, 17]], ids=["tokens", "mixed", "chunks"])
def test_cached_equals_uncached(cell: Cell, chunks: list[int]) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, LENGTH)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
    actual = decode(model, tokens, chunks, DynamicCache(config=model.config))
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_static_cache_equals_uncached(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, LENGTH)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=LENGTH + 5)
    actual = decode(model, tokens, [9, 1, 1, 13], cache)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "cell", [cell for cell in CAUSAL if "dynamic" in cell.label or "longrope" in cell.label], ids=str
)
def test_cached_keys_turn_anew_as_the_text_grows(cell: Cell) -> None:
    """With one layer, what is cached does not depend on angles: the last token must come out as without a cache."""
    model = hf_posswap.swap(small_model(cell.architecture, True, num_hidden_layers=1), cell.config)
    tokens = random_tokens(2, 2 * TRAIN_LENGTH)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits[:, -1]
    actual = decode(model, tokens, [TRAIN_LENGTH - 4, *[1] * 8, TRAIN_LENGTH - 5, 1], DynamicCache(config=model.config))
    torch.testing.assert_close(actual[:, -1], expected, atol=2e-4, rtol=1e-4)


def greedy(model: Any, tokens: torch.Tensor, mask: torch.Tensor, new: int) -> torch.Tensor:
    """Greedy continuation without any cache."""
    for _ in range(new):
        with torch.no_grad():
            logits = model(tokens, attention_mask=mask, use_cache=False).logits[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return tokens


@pytest.mark.parametrize("cell", DEFAULT_CAUSAL, ids=str)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_continues_a_left_padded_batch_as_recomputation_does(cell: Cell, cache: str) -> None:
    model = cell.swapped()
    tokens = random_tokens(3, 12)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    mask[1, :1] = 0
    tokens = tokens * mask
    model.generation_config.eos_token_id = None
    generated = model.generate(
        tokens, attention_mask=mask, max_new_tokens=8, do_sample=False, cache_implementation=cache, pad_token_id=0,
        disable_compile=True,
    )  # fmt: skip
    assert torch.equal(generated, greedy(model, tokens, mask, 8))


SETTINGS: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "disable_compile": True}


@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_padding_within_a_conversation_is_left_out_whatever_the_cache(cell: Cell) -> None:
    """Turns of a batch of conversations are padded to one length: the first text has a hole, the second has none."""
    model = cell.swapped()
    model.generation_config.eos_token_id = None
    tokens = random_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, 4:7] = 0
    alone = [tokens[:1, mask[0].bool()], tokens[1:]]
    expected = [greedy(model, text, torch.ones_like(text), 6)[0, -6:] for text in alone]
    for cache in ("dynamic", "static"):
        generated = model.generate(
            tokens * mask, attention_mask=mask, max_new_tokens=6, cache_implementation=cache, **SETTINGS
        )
        assert torch.equal(generated[:, -6:], torch.stack(expected)), cache


def reads_distances(cell: Cell, model: Any) -> bool:
    """Whether the scheme needs to know where cached keys stand: for a bias, or to turn them anew."""
    asked: list[bool] = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Positions, "require_known", lambda self: asked.append(True))
        model.generate(random_tokens(1, 4), max_new_tokens=2, **SETTINGS)  # a text, and a token after it
    return bool(asked) or "dynamic" in cell.label or "longrope" in cell.label


@pytest.mark.parametrize("cell", CAUSAL, ids=str)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_prompts_padded_on_the_right_are_counted_as_in_stock_or_refused(cell: Cell, cache: str) -> None:
    """transformers counts new tokens on from the padding, so that distances to cached keys are unknown."""
    model = cell.swapped()
    model.generation_config.eos_token_id = None
    tokens = random_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, 8:] = 0
    arguments = {"attention_mask": mask, "max_new_tokens": 6} | SETTINGS
    if reads_distances(cell, model):
        with pytest.raises(PositionError, match=r"pad them on the left: tokenizer.padding_side = 'left'"):
            model.generate(tokens * mask, cache_implementation=cache, **arguments)
    else:
        generated = model.generate(tokens * mask, cache_implementation=cache, **arguments)
        assert torch.equal(generated, model.generate(tokens * mask, use_cache=False, **arguments))


@pytest.mark.parametrize("cell", DEFAULT_CAUSAL, ids=str)
def test_beam_search_with_and_without_a_cache(cell: Cell) -> None:
    model = cell.swapped()
    model.generation_config.eos_token_id = None
    tokens = random_tokens(2, 8)
    settings = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    cached = model.generate(tokens, attention_mask=mask, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(tokens, attention_mask=mask, use_cache=False, **settings))

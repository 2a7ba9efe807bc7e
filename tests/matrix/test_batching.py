"""Invariants 6 and 7: a text gives the same output alone, padded on either side, or packed with others."""

import pytest
import torch

from tests.matrix.cells import Cell, default_cells, random_tokens, supported_cells

SHORT, LONG = 11, 20


@pytest.mark.parametrize("cell", supported_cells(), ids=str)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_padding_on_either_side_equals_alone(cell: Cell, backend: str) -> None:
    model = cell.swapped()
    model.set_attn_implementation(backend)
    text, other = random_tokens(1, SHORT, seed=3), random_tokens(1, LONG, seed=4)
    padding = torch.zeros(1, LONG - SHORT, dtype=torch.long)
    hidden, visible = padding, torch.ones(1, SHORT, dtype=torch.long)
    full = torch.ones(1, LONG, dtype=torch.long)
    with torch.no_grad():
        alone, other_alone = model(text).logits, model(other).logits
        left = model(
            torch.cat([torch.cat([padding, text], 1), other]),
            attention_mask=torch.cat([torch.cat([hidden, visible], 1), full]),
        ).logits
        right = model(
            torch.cat([torch.cat([text, padding], 1), other]),
            attention_mask=torch.cat([torch.cat([visible, hidden], 1), full]),
        ).logits
    close = {"atol": 2e-4, "rtol": 1e-4}
    torch.testing.assert_close(left[:1, LONG - SHORT :], alone, **close)
    torch.testing.assert_close(right[:1, :SHORT], alone, **close)
    torch.testing.assert_close(left[1:], other_alone, **close)
    torch.testing.assert_close(right[1:], other_alone, **close)
    assert left.isfinite().all()


PACKED = [
    (cell, backend, use_cache)
    for cell in supported_cells()
    for backend in ("eager", "sdpa")
    for use_cache in (True, False)
    # The backend and the cache see no options: a variant goes once through each.
    if cell.is_default or (backend == "eager") == use_cache
]


@pytest.mark.parametrize(("cell", "backend", "use_cache"), PACKED, ids=str)
def test_packed_equals_separate(cell: Cell, backend: str, use_cache: bool) -> None:
    model = cell.swapped()
    model.set_attn_implementation(backend)
    lengths = [7, 12, 5]
    texts = [random_tokens(1, length, seed=length) for length in lengths]
    position_ids = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    extra = {"use_cache": use_cache} if cell.causal else {}
    with torch.no_grad():
        packed = model(torch.cat(texts, 1), position_ids=position_ids, **extra).logits
        separate = torch.cat([model(text).logits for text in texts], dim=1)
    torch.testing.assert_close(packed, separate, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["counted", "given"])
def test_a_text_with_hidden_tokens_equals_the_text_without_them(cell: Cell, given: bool) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 16)
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[:, 5:9] = 0
    kept = mask[0].bool()
    positions = {"position_ids": (mask.cumsum(1) - 1)} if given else {}
    with torch.no_grad():
        expected = model(tokens[:, kept]).logits
        actual = model(tokens, attention_mask=mask, **positions).logits[:, kept]
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_positions_that_skip_are_read_as_given(cell: Cell) -> None:
    """With an explicit mask, positions may skip (as in PoSE training): the same text with its gap filled and hidden."""
    model = cell.swapped()
    tokens = random_tokens(1, 16)
    hidden = torch.ones(1, 16, dtype=torch.long)
    hidden[:, 5:9] = 0
    kept = torch.cat([torch.arange(5), torch.arange(9, 16)])
    with torch.no_grad():
        # A 4D mask says nothing about positions, so those of the full text are explicit too.
        allowed = hidden.bool()[:, None, None, :].expand(1, 1, 16, 16)
        if cell.causal:
            allowed = allowed & torch.ones(16, 16).tril().bool()
        additive = torch.zeros(1, 1, 16, 16).masked_fill(~allowed, torch.finfo(torch.float32).min)
        model.set_attn_implementation("eager")
        positions = torch.arange(16).unsqueeze(0)
        full = model(tokens, attention_mask=additive, position_ids=positions).logits[:, kept]
        skipping = model(
            tokens[:, kept], attention_mask=torch.ones(1, len(kept), dtype=torch.long), position_ids=positions[:, kept]
        ).logits
    torch.testing.assert_close(skipping, full, atol=2e-4, rtol=1e-4)

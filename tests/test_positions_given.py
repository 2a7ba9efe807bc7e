"""Positions and masks that do not fit the tokens are refused, in every core family and for every scheme."""

from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.errors import CheckpointError, PositionError
from tests.matrix.cells import Cell, default_cells, random_tokens, small_model

CAUSAL = [cell for cell in default_cells() if cell.causal]
WRONG: list[tuple[str, Any]] = [
    ("too few", torch.arange(5)),
    ("too many", torch.arange(30)[None]),
    ("of another batch", torch.arange(12).expand(3, -1)),
    ("rounded", torch.arange(12).bfloat16()[None]),
    ("a list", list(range(12))),
]


@pytest.mark.parametrize(("what", "positions"), WRONG, ids=[what for what, _ in WRONG])
@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_position_ids_that_do_not_fit_are_refused(cell: Cell, what: str, positions: Any) -> None:
    with pytest.raises(PositionError, match=r"position_ids are .*integers of shape \(12,\), \(1, 12\) or \(2, 12\)"):
        cell.swapped()(random_tokens(2, 12), position_ids=positions)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_positions_of_every_shape_that_fits_are_the_same(cell: Cell) -> None:
    model, tokens = cell.swapped(), random_tokens(2, 12)
    steps = torch.arange(12)
    with torch.no_grad():
        expected = model(tokens).logits
        for positions in (steps, steps[None], steps.expand(2, -1), steps.int()):
            torch.testing.assert_close(model(tokens, position_ids=positions).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_one_token_is_not_given_the_positions_of_a_text(cell: Cell) -> None:
    with pytest.raises(PositionError, match="for 1 texts of 1 new tokens"):
        cell.swapped()(random_tokens(1, 1), position_ids=torch.arange(10)[None])


@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_a_mask_longer_than_the_text_is_refused(cell: Cell) -> None:
    with pytest.raises(PositionError, match="the attention mask is for 15 tokens, and there are 12"):
        cell.swapped()(random_tokens(2, 12), attention_mask=torch.ones(2, 15, dtype=torch.long))


@pytest.mark.parametrize("scheme", ["rope:dynamic", "alibi", "t5"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_cached_text_that_began_elsewhere_is_refused(architecture: str, scheme: str) -> None:
    model = hf_posswap.swap(small_model(architecture, True), scheme)
    out = model(random_tokens(1, 6), position_ids=torch.arange(20, 26)[None], use_cache=True)
    cache = {name: value for name, value in out.items() if type(value).__name__ == "DynamicCache"}
    with pytest.raises(PositionError, match="do not continue the cached tokens"):
        model(random_tokens(1, 2), position_ids=torch.arange(26, 28)[None], use_cache=True, **cache)


def test_a_config_that_was_edited_is_not_saved(tmp_path: Any) -> None:
    model = hf_posswap.swap(small_model("gpt2", True), "alibi")
    model.config.pos_scheme = model.config.pos_scheme | {"name": "none", "options": {}}
    with pytest.raises(CheckpointError, match="Editing the config changes no model"):
        model.save_pretrained(tmp_path)

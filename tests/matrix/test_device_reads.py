"""A forward reads from the device once more than the stock model's, whatever the number of layers.

On a GPU each read makes the CPU wait for all that was started. Eager attention is what a CPU and a GPU have in common:
the other backends' paths for a CPU read masks, and those for a GPU do not (tests/cuda has them).
"""

from typing import Any

import pytest
import torch

from hf_posswap import longest_position
from tests.device_reads import Reads
from tests.matrix.cells import LAYERS, TRAIN_LENGTH, Cell, default_cells, given, random_tokens, supported_cells

LENGTH = TRAIN_LENGTH + 8
"""Past the train length, where some schemes compute otherwise."""
PADDING = 5


def arguments_of(model: Any, kind: str) -> dict[str, Any]:
    """A forward of tokens alone, with a mask, padded, with positions; or one further token, as `generate` passes it."""
    length = min(longest_position(model) or LENGTH, TRAIN_LENGTH if model.config.model_type == "gpt2" else LENGTH)
    tokens = random_tokens(2, length)
    mask = torch.ones_like(tokens)
    if kind == "bare":
        return {"input_ids": tokens}
    if kind == "positions":
        return {"input_ids": tokens, "position_ids": torch.arange(length).unsqueeze(0)}
    if kind != "whole":
        mask[0, :PADDING] = 0
    if kind != "decode":
        return {"input_ids": tokens, "attention_mask": mask}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    before = {"attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]}
    outputs = model(tokens[:, :-1], use_cache=True, **before)
    cache = outputs["past_key_values"] if "past_key_values" in outputs else outputs["cache"]
    return {
        "input_ids": tokens[:, -1:],
        "attention_mask": mask,
        "position_ids": positions[:, -1:],
        **given(model, cache),
    }


@torch.no_grad()
def reads(model: Any, kind: str) -> int:
    model.set_attn_implementation("eager")
    arguments = arguments_of(model, kind)
    with Reads() as counted:
        model(**arguments)
    return counted.count


@pytest.mark.parametrize("kind", ["whole", "padded"])
@pytest.mark.parametrize("cell", supported_cells(), ids=str)
def test_the_number_of_values_read_does_not_grow_with_the_layers(cell: Cell, kind: str) -> None:
    assert reads(cell.swapped(), kind) == reads(cell.swapped(layers=LAYERS - 1), kind)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_one_read_is_added_at_most_and_none_without_mask_and_positions(cell: Cell) -> None:
    kinds = {"bare": 0, "whole": 1, "padded": 1, "positions": 1} | ({"decode": 1} if cell.causal else {})
    swapped, stock = cell.swapped(), cell.stock()
    added = {kind: reads(swapped, kind) - reads(stock, kind) for kind in kinds}
    assert all(added[kind] <= most for kind, most in kinds.items()), added

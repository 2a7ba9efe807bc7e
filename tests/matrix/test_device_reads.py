"""No layer reads values back from the device: on a GPU each such read makes the CPU wait for all that was started."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_posswap import longest_position
from tests.matrix.cells import LAYERS, TRAIN_LENGTH, Cell, random_tokens, supported_cells

LENGTH = TRAIN_LENGTH + 8
"""Past the train length, where some schemes compute otherwise."""


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def reads(cell: Cell, layers: int, padded: bool) -> int:
    model = cell.swapped(layers=layers)
    tokens = random_tokens(2, min(longest_position(model) or LENGTH, LENGTH))
    mask = torch.ones_like(tokens)
    mask[0, : 5 * padded] = 0
    with torch.no_grad(), Reads() as counted:
        model(tokens, attention_mask=mask)
    return counted.count


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("cell", supported_cells(), ids=str)
def test_the_number_of_values_read_does_not_grow_with_the_layers(cell: Cell, padded: bool) -> None:
    assert reads(cell, LAYERS, padded) == reads(cell, LAYERS - 1, padded)

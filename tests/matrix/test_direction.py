"""Invariant 8: causal models see no future; encoders are mirrored exactly by symmetric biases and by no others."""

from typing import Any

import pytest
import torch

from hf_posswap.biases import RelativeBias
from hf_posswap.positions import Positions
from hf_posswap.schemes import SchemeLayer
from tests.matrix.cells import Cell, random_tokens, supported_cells


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if cell.causal], ids=str)
def test_no_future_leak(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 24)
    changed = tokens.clone()
    changed[:, 15:] = random_tokens(2, 9, seed=9)
    with torch.no_grad():
        before, after = model(tokens).logits, model(changed).logits
        shorter = model(tokens[:, :15]).logits
    torch.testing.assert_close(after[:, :15], before[:, :15], atol=1e-5, rtol=0)
    torch.testing.assert_close(shorter, before[:, :15], atol=2e-4, rtol=1e-4)
    assert (after[:, 15:] - before[:, 15:]).abs().max() > 1e-3


def is_symmetric(model: Any) -> bool:
    """Whether all that the scheme does is a bias that is the same to the left and to the right."""
    scheme = model.base_model.pos_scheme
    steps = torch.arange(6).unsqueeze(0)
    positions = Positions(steps, steps, 0, causal=False)
    layers = [layer for layer in model.modules() if isinstance(layer, SchemeLayer)]
    if scheme.embed(positions) is not None or not layers:
        return False
    query, prepared = torch.randn(1, 4, 6, 8), scheme.prepare(positions)
    bias = layers[0].bias(query, positions, prepared, 1.0)
    return isinstance(bias, RelativeBias) and torch.equal(bias.values, bias.values.flip(-1))


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if not cell.causal], ids=str)
def test_mirror(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 20)
    with torch.no_grad():
        forward, backward = model(tokens).logits, model(tokens.flip(1)).logits.flip(1)
    difference = (forward - backward).abs().max()
    if is_symmetric(model):
        assert difference < 2e-4
    else:
        assert difference > 1e-2


def test_only_the_symmetric_penalties_are_symmetric() -> None:
    encoders = [cell for cell in supported_cells() if not cell.causal]
    symmetric = {cell.label for cell in encoders if is_symmetric(cell.swapped())}
    assert symmetric == {"alibi", "alibi:symmetric", "alibi:trainable", "alibi:trainable=true:per_layer=true"}

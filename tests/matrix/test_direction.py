"""Invariant 8: causal models see no future; encoders are mirrored exactly by symmetric biases and by no others."""

import pytest
import torch

from tests.matrix.cells import Cell, default_cells, random_tokens, supported_cells


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


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if not cell.causal], ids=str)
def test_mirror(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 20)
    with torch.no_grad():
        forward, backward = model(tokens).logits, model(tokens.flip(1)).logits.flip(1)
    difference = (forward - backward).abs().max()
    if model.base_model.pos_scheme.symmetric():
        assert difference < 2e-4
    else:
        assert difference > 1e-2


def test_schemes_with_and_without_a_direction_are_among_the_encoders() -> None:
    declared = [cell.swapped().base_model.pos_scheme.symmetric() for cell in default_cells() if not cell.causal]
    assert any(declared)
    assert not all(declared)

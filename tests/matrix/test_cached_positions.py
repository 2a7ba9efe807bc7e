"""A cached text that starts elsewhere than at 0: every causal cell reads it as without a cache, or refuses it."""

import pytest
import torch

import hf_posswap
from hf_posswap.errors import PositionError
from tests.matrix.cells import TRAIN_LENGTH, Cell, given, random_tokens, supported_cells

BY_LENGTH = ("dynamic", "longrope")
CAUSAL = [
    cell for cell in supported_cells() if cell.causal and (cell.is_default or cell.label.partition(":")[2] in BY_LENGTH)
]


@torch.no_grad()
@pytest.mark.parametrize("start", [TRAIN_LENGTH - 12, TRAIN_LENGTH + 8])
@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_a_cached_text_that_starts_elsewhere_is_read_right_or_refused(cell: Cell, start: int) -> None:
    model, tokens = cell.swapped(), random_tokens(1, 10)
    positions = torch.arange(start, start + 10)[None]
    limit = hf_posswap.longest_position(model)
    if limit is not None and start + 10 > limit:
        with pytest.raises(PositionError, match=f"has positions for {limit} tokens only"):
            model(tokens, position_ids=positions, use_cache=True)
        return
    expected = model(tokens, position_ids=positions, use_cache=False).logits
    first = model(tokens[:, :6], position_ids=positions[:, :6], use_cache=True)
    cache = next(value for value in first.values() if hasattr(value, "get_seq_length"))
    try:
        rest = model(tokens[:, 6:], position_ids=positions[:, 6:], use_cache=True, **given(model, cache))
    except PositionError as error:
        assert "do not continue the cached tokens" in str(error)  # noqa: PT017  # the other right outcome is a number
        return
    torch.testing.assert_close(rest.logits, expected[:, 6:], atol=1e-4, rtol=1e-4)

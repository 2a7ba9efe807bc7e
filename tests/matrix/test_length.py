"""Invariant 9: unbounded schemes read four times the old limit; bounded ones name theirs."""

import pytest
import torch

import hf_posswap
from hf_posswap.errors import PositionError
from tests.matrix.cells import TRAIN_LENGTH, Cell, random_tokens, supported_cells


@pytest.mark.parametrize("cell", supported_cells(), ids=str)
def test_longer_than_before(cell: Cell) -> None:
    model = cell.swapped()
    limit = hf_posswap.longest_position(model)
    tokens = random_tokens(1, 4 * TRAIN_LENGTH)
    with torch.no_grad():
        assert model(tokens[:, :limit]).logits.isfinite().all()
        if limit is None:
            return
        if limit > tokens.shape[1]:  # too far to be read here: only its last position is
            last = torch.tensor([[limit - 1]])
            assert model(tokens[:, :1], position_ids=last).logits.isfinite().all()
            with pytest.raises(PositionError, match=f"reaches position {limit + 1}.* positions for {limit} tokens"):
                model(tokens[:, :1], position_ids=last + 1)
            return
        with pytest.raises(PositionError, match=f"reaches position {limit + 1}.* positions for {limit} tokens only"):
            model(tokens[:, : limit + 1])
        with pytest.raises(PositionError, match=f"{limit} tokens only"):
            model(tokens[:, :1], position_ids=torch.tensor([[limit]]))


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if cell.causal], ids=str)
def test_generation_passes_the_old_limit(cell: Cell) -> None:
    model = cell.swapped()
    limit = hf_posswap.longest_position(model)
    if limit is not None and limit <= 4 * TRAIN_LENGTH:
        with pytest.raises(PositionError, match=f"{limit} tokens only"):
            model.generate(random_tokens(1, limit - 1), max_new_tokens=4, do_sample=False, pad_token_id=0)
        return
    model.generation_config.eos_token_id = None
    prompt = random_tokens(1, TRAIN_LENGTH - 2)
    generated = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, TRAIN_LENGTH + 4)

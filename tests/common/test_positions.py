"""Positions: distances by index and by position, under offsets, gaps and causality."""

import pytest
import torch

from hf_posswap.common.positions import Positions
from hf_posswap.errors import PositionError


def at(*rows):
    return torch.tensor(rows)


@pytest.mark.parametrize("offset", [0, 3, torch.tensor(3)])
def test_distances_ascend_and_follow_the_indices(offset):
    keys = 4 + int(offset)
    positions = Positions(torch.arange(keys)[None, int(offset) :], torch.arange(keys)[None], offset, causal=False)
    assert positions.distances.dtype == torch.int64
    assert positions.distances.shape == (4 + keys - 1,)
    for i in range(4):
        for j in range(keys):
            assert positions.distances[i - j + keys - 1] == i + int(offset) - j


def test_rows_hold_query_minus_key():
    positions = Positions(at([5, 9], [0, 2]), at([1, 5, 9], [7, 0, 2]), offset=1, causal=False, by_index=False)
    assert positions.distance_rows(0, 2).tolist() == [[[4, 0, -4], [8, 4, 0]], [[-7, 0, -2], [-5, 2, 0]]]
    assert positions.distance_rows(1, 2).tolist() == [[[8, 4, 0]], [[-5, 2, 0]]]


@pytest.mark.parametrize("by_index", [True, False])
def test_causal_rows_count_keys_after_the_query_as_distance_0(by_index):
    positions = Positions(at([0, 1, 2]), at([0, 1, 2]), 0, causal=True, by_index=by_index)
    assert positions.distance_rows(0, 3).tolist() == [[[0, 0, 0], [1, 0, 0], [2, 1, 0]]]


def test_rows_by_index_and_by_position_agree_on_plain_text():
    for causal in (True, False):
        both = [
            Positions(torch.arange(3, 9)[None], torch.arange(9)[None], 3, causal, by_index).distance_rows(2, 5)
            for by_index in (True, False)
        ]
        assert torch.equal(*both)


def test_indices_count_even_where_positions_restart():
    # Packed documents are masked from each other, so only distances within one matter, and those are the indices'.
    positions = Positions(at([0, 1, 0, 1]), at([0, 1, 0, 1]), 0, causal=True)
    assert positions.distance_rows(3, 4).tolist() == [[[3, 2, 1, 0]]]


def test_row_lengths_are_those_of_each_row():
    positions = Positions(at([0, 1, 2, 3], [0, 0, 0, 1]), at([0, 1, 2, 3], [0, 0, 0, 1]), 0, causal=True)
    assert positions.row_lengths().tolist() == [[4], [2]]
    assert (positions.query_length, positions.key_length) == (4, 4)


def test_far_positions_are_exact():
    far = 2**24 + 1  # the first whole number that float32 does not hold
    positions = Positions(at([far]), at([far - 1, far]), far - 1, causal=True, by_index=False)
    assert positions.distance_rows(0, 1).tolist() == [[[1, 0]]]
    assert positions.row_lengths().item() == far + 1


def test_gaps_have_no_distances_by_index():
    with pytest.raises(PositionError, match="positions skip"):
        _ = Positions(at([0, 5]), at([0, 5]), 0, causal=True, by_index=False).distances


@pytest.mark.parametrize("ask", [lambda p: p.distances, lambda p: p.distance_rows(0, 1)])
def test_unknown_positions_of_cached_keys_are_refused_with_the_way_out(ask):
    positions = Positions(at([7]), at([0, 0, 7]), 2, causal=True, by_index=None)
    with pytest.raises(PositionError, match="position_ids do not continue the cached tokens.*Pass position_ids"):
        ask(positions)

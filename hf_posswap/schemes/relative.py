"""Turns a function of the relative distance into the cheapest kind of bias that represents it."""

from collections.abc import Callable

from torch import Tensor

from hf_posswap.common.biases import Bias, DenseBias, RelativeBias
from hf_posswap.common.positions import Positions


def bias_by_distance(positions: Positions, values: Callable[[Tensor], Tensor]) -> Bias:
    """Return the bias values(Δ) of every query and key.

    Args:
        positions: positions of this forward.
        values: maps int64 distances of any shape (…) to float32 values (H, …). In a causal model it is also asked for
            distances below 0, whose values are masked.
    """
    if positions.by_index:
        return RelativeBias(values(positions.distances), positions.query_length, positions.key_length)
    every = positions.bounded_distances()
    if every is not None:  # compute each distance's value once and index it, instead of computing it for each pair
        vector = values(every)
        return DenseBias(lambda start, stop: vector[:, positions.bounded_index(start, stop)].transpose(0, 1))
    return DenseBias(lambda start, stop: values(positions.distance_rows(start, stop)).transpose(0, 1))

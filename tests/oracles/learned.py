"""Learned positions: Gehring et al. 2017, 1705.03122, section 3.1, and four ways to make their table longer.

hierarchical: Su 2020, spaces.ac.cn/archives/7947. interpolate: linear between rows, as for Vision Transformers
(Dosovitskiy et al. 2021, 2010.11929, section 3.2) in one dimension.
"""

import math

import numpy as np

from tests.oracles.loops import Array


def embedding_oracle(positions: list[int], table: Array, length: int, how: str, alpha: float = 0.4) -> Array:
    """Return the vectors added to the embeddings, (L, D), from a table of `length` rows made of a shorter one."""
    return np.array([row_at(p, table, length, how, alpha) for p in positions])


def row_at(position: int, table: Array, length: int, how: str, alpha: float) -> Array:
    """Return the row of one position."""
    rows = len(table)
    if length == rows:
        return table[position]
    if how == "tile":
        return table[position % rows]
    if how == "last-row":
        return table[min(position, rows - 1)]
    if how == "interpolate":
        place = min(position * rows / length, rows - 1)
        low = math.floor(place)
        high = min(low + 1, rows - 1)
        return (low + 1 - place) * table[low] + (place - low) * table[high]
    a, b = divmod(position, rows)
    u_a, u_b = ((table[p] - alpha * table[0]) / (1 - alpha) for p in (a, b))
    return alpha * u_a + (1 - alpha) * u_b

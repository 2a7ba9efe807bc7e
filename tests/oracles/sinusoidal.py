"""Sinusoidal positions: Vaswani et al. 2017, 1706.03762, section 3.5."""

import math

import numpy as np

from tests.oracles.loops import Array


def embedding_oracle(positions: list[int], dim: int, base: float, amplitude: float, interleaved: bool) -> Array:
    """Return the vectors added to the embeddings, (L, D)."""
    rows = np.zeros((len(positions), dim))
    for row, position in zip(rows, positions, strict=True):
        for i in range(dim // 2):
            angle = position / base ** (2 * i / dim)
            sine, cosine = (2 * i, 2 * i + 1) if interleaved else (i, dim // 2 + i)
            row[sine] = amplitude * math.sin(angle)
            row[cosine] = amplitude * math.cos(angle)
    return rows

"""Sandwich: Chi et al. 2023, 2212.10356, section 5: the inner product of two sinusoidal embeddings, by head."""

import math

from tests.oracles.loops import Array, dot, loop_attention


def embedding(position: int, dimension: int) -> list[float]:
    """Return the sinusoidal embedding of a position: sines, then cosines."""
    angles = [position / 10000 ** (2 * n / dimension) for n in range(1, dimension // 2 + 1)]
    return [math.sin(x) for x in angles] + [math.cos(x) for x in angles]


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    dimension: int,
) -> Array:
    """Return the context (H, Lq, d)."""
    heads = q.shape[0]
    group = heads // k.shape[0]

    def score(h: int, i: int, j: int) -> float:
        product = sum(
            x * y for x, y in zip(embedding(query_at[i], dimension), embedding(key_at[j], dimension), strict=True)
        )
        ratio = 8 * (h + 1) / heads
        return dot(q[h, i], k[h // group, j]) * scaling + (product - dimension / 2) / ratio

    return loop_attention(q, k, v, visible, score)

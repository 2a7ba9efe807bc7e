"""Contextual position encoding: Golovneva et al. 2024, 2405.18719, section 4, gates as in the authors' code."""

import math

from tests.oracles.loops import Array, dot, loop_attention


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    vectors: Array,
) -> Array:
    """Return the context (H, Lq, d); vectors e are (P, d). Positions given from outside are not read."""
    group = q.shape[0] // k.shape[0]
    last = len(vectors) - 1

    def content(h: int, i: int, j: int) -> float:
        return dot(q[h, i], k[h // group, j]) * scaling

    def position(h: int, i: int, j: int) -> float:
        counted = [t for t in range(j, k.shape[1]) if visible[i][t]]
        return min(float(last), sum(1 / (1 + math.exp(-content(h, i, t))) for t in counted))

    def score(h: int, i: int, j: int) -> float:
        p = position(h, i, j)
        below, above = vectors[math.floor(p)], vectors[math.ceil(p)]
        share = p - math.floor(p)
        return content(h, i, j) + (share * dot(q[h, i], above) + (1 - share) * dot(q[h, i], below)) * scaling

    return loop_attention(q, k, v, visible, score)

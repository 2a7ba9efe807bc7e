"""NoPE: Haviv et al. 2022, 2203.16634; the factor beyond the train length is DroPE's, 2512.12167."""

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
    recalibration: float = 0.0,
    original_length: int = 1,
) -> Array:
    """Return the context (H, Lq, d); logits of the query at position p are scaled by 1 + c·ln((p + 1)/T) beyond T."""
    group = q.shape[0] // k.shape[0]

    def score(h: int, i: int, j: int) -> float:
        length = query_at[i] + 1
        factor = 1 + recalibration * math.log(length / original_length) if length > original_length else 1
        return dot(q[h, i], k[h // group, j]) * scaling * factor

    return loop_attention(q, k, v, visible, score)

"""Disentangled attention: He et al. 2021, 2006.03654, equations 2 to 4, with the log buckets of DeBERTa-v2.

The projected position vectors are given, and the scores are scaled as the model scales them, not by 1/√(3d).
"""

import math

from tests.oracles.loops import Array, dot, loop_attention


def bucket(distance: int, k: int, max_distance: int) -> int:
    """Return δ − k of equation 2, with logarithmic buckets beyond k/2."""
    middle = k // 2
    if abs(distance) <= middle:
        return distance
    far = middle + math.ceil(math.log(abs(distance) / middle) / math.log((max_distance - 1) / middle) * (middle - 1))
    return min(far, k - 1) if distance > 0 else -min(far, k)


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    buckets: int,
    max_distance: int,
    position_keys: Array,
    position_queries: Array,
) -> Array:
    """Return the context (H, Lq, d); both tables are (H, R, d), R = k for Δ ≥ 0 alone, or 2k."""
    group = q.shape[0] // k.shape[0]
    first = buckets - position_keys.shape[1]

    def score(h: int, i: int, j: int) -> float:
        row = bucket(query_at[i] - key_at[j], buckets, max_distance) - first
        key = k[h // group, j]
        content_to_position = dot(q[h, i], position_keys[h, row])
        position_to_content = dot(key, position_queries[h, row])
        return (dot(q[h, i], key) + content_to_position + position_to_content) * scaling

    return loop_attention(q, k, v, visible, score)

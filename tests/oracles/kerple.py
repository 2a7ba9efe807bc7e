"""KERPLE: Chi et al. 2022, 2205.09921, equations 4 (power) and 5 (logarithmic), with r1 and r2 written as a and p."""

import math

from tests.oracles.loops import Array, dot, loop_attention


def penalty(form: str, p: float, a: float, distance: int) -> float:
    """Return what is subtracted from the score of a key at distance Δ = i − j."""
    if form == "log":
        return p * math.log(1 + a * abs(distance))
    return a * float(abs(distance)) ** p


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    form: str,
    p: list[float],
    a: list[float],
) -> Array:
    """Return the context (H, Lq, d); p and a are per head."""
    group = q.shape[0] // k.shape[0]

    def score(h: int, i: int, j: int) -> float:
        return dot(q[h, i], k[h // group, j]) * scaling - penalty(form, p[h], a[h], query_at[i] - key_at[j])

    return loop_attention(q, k, v, visible, score)

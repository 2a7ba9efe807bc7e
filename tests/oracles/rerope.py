"""ReRoPE and Leaky ReRoPE: Su 2023, kexue.fm/archives/9708 and the author's code (bojone/rerope), on RoPE pairs.

In encoders the distance keeps its sign.
"""

import math

from tests.oracles.loops import Array, dot, loop_attention
from tests.oracles.rope import frequencies, turn


def distance(apart: int, neighbours: int, leak: float | None) -> float:
    """Return the relative position that stands for the distance `apart`."""
    beyond = abs(apart) - neighbours
    if beyond < 0:
        return apart
    return math.copysign(neighbours + (0 if leak is None else beyond / leak), apart)


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    base: float,
    neighbours: int,
    leak: float | None = None,
) -> Array:
    """Return the context (H, Lq, d)."""
    repeat = q.shape[0] // k.shape[0]
    thetas = frequencies("none", q.shape[-1], base)

    def score(h: int, i: int, j: int) -> float:
        apart = distance(query_at[i] - key_at[j], neighbours, leak)
        return dot(turn(q[h, i], apart, thetas, False, 1.0), k[h // repeat, j]) * scaling

    return loop_attention(q, k, v, visible, score)

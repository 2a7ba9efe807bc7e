"""Transformer-XL's relative positions: Dai et al. 2019, 1901.02860, section 3.3, the second A^rel."""

import math

import numpy as np

from tests.oracles.loops import Array, dot, loop_attention


def sinusoid(distance: int, dim: int, base: float) -> Array:
    """R_{i−j} of section 3.3: all sines, then all cosines, as in the authors' code."""
    angles = [distance / base ** (2 * n / dim) for n in range(dim // 2)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    u: Array,
    v_bias: Array,
    weight: Array,
    base: float,
) -> Array:
    """Return the context (H, Lq, d); u and v_bias are (H, d), weight is W_{k,R} as (H·d, D)."""
    heads, _, head_dim = q.shape
    group = heads // k.shape[0]

    def score(h: int, i: int, j: int) -> float:
        key = k[h // group, j]
        r = sinusoid(query_at[i] - key_at[j], weight.shape[1], base)
        projected = [dot(weight[h * head_dim + c], r) for c in range(head_dim)]
        content = dot(q[h, i], key) + dot(u[h], key)
        position = dot(q[h, i], projected) + dot(v_bias[h], projected)
        return (content + position) * scaling

    return loop_attention(q, k, v, visible, score)

"""TISA: Wennberg and Henter 2021, 2106.01950: a sum of radial-basis functions of j − i for each head."""

import math

from tests.oracles.loops import Array, dot, loop_attention


def positional_score(a: list[float], b: list[float], c: list[float], ahead: int) -> float:
    """Return f(j − i) of one head, given its amplitudes, sharpnesses and offsets."""
    return sum(x * math.exp(-abs(y) * (ahead - z) ** 2) for x, y, z in zip(a, b, c, strict=True))


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    a: list[list[float]],
    b: list[list[float]],
    c: list[list[float]],
) -> Array:
    """Return the context (H, Lq, d); a, b and c are by head and kernel."""
    group = q.shape[0] // k.shape[0]

    def score(h: int, i: int, j: int) -> float:
        return dot(q[h, i], k[h // group, j]) * scaling + positional_score(a[h], b[h], c[h], key_at[j] - query_at[i])

    return loop_attention(q, k, v, visible, score)

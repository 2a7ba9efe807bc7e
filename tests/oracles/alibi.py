"""ALiBi: Press et al. 2022, 2108.12409, section 3: softmax(q_i·K + m·[−(i−1), …, −2, −1, 0]).

The encoder forms are not in the paper: symmetric is MosaicBERT's and Jina v2's; the others are defined in the scheme.
"""

import math

from tests.oracles.loops import Array, dot, loop_attention


def slopes(heads: int) -> list[float]:
    """Section 3: "a geometric sequence that starts at 2^(−8/n) and uses that same value as its ratio".

    Footnote and authors' code for other n: those of the lower power of two, then every other one of the next.
    """
    power = 1
    while power * 2 <= heads:
        power *= 2
    ratio = 2 ** (-8 / power)
    sequence = [ratio ** (h + 1) for h in range(power)]
    finer = [math.sqrt(ratio) ** (2 * h + 1) for h in range(heads - power)]
    return sequence + finer


def penalty(
    form: str, heads: int, head: int, distance: int, m: list[float], offset: float, right_ratio: float
) -> float:
    """Return what is subtracted from the score of a key at distance Δ = i − j; a key to the right has Δ < 0."""
    if form == "one-sided":
        sees_left = head < heads // 2
        if (distance < 0) if sees_left else (distance > 0):
            return math.inf
    if distance >= 0:
        return m[head] * distance
    if form == "offset":
        return m[head] * (-distance + offset)
    if form == "two-slope":
        return m[head] * -distance * right_ratio
    return m[head] * -distance


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    form: str,
    m: list[float] | None = None,
    offset: float = 0.5,
    right_ratio: float = 0.5,
    train_length: int | None = None,
) -> Array:
    """Return the context (H, Lq, d); `m` replaces the paper's slopes.

    With a train length, slopes are interpolated (Al-Khateeb et al. 2023, 2310.13017): m·T/n for a text of n > T tokens.
    """
    heads = q.shape[0]
    group = heads // k.shape[0]
    if m is None:
        m = slopes(heads // 2) * 2 if form == "one-sided" else slopes(heads)
    length = max(query_at) + 1
    if train_length is not None and length > train_length:
        m = [slope * train_length / length for slope in m]

    def score(h: int, i: int, j: int) -> float:
        distance = query_at[i] - key_at[j]
        return dot(q[h, i], k[h // group, j]) * scaling - penalty(form, heads, h, distance, m, offset, right_ratio)

    return loop_attention(q, k, v, visible, score)

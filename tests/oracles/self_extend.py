"""SelfExtend: Jin et al. 2024, 2401.01325, section 3 and the pseudocode of its appendix, on RoPE pairs as numbers.

In encoders, which the paper does not treat, keys after the query have the distances of keys before it, negated.
"""

from tests.oracles.loops import Array, dot, loop_attention
from tests.oracles.rope import frequencies, turn


def distance(i: int, j: int, neighbours: int, group: int) -> int:
    """Return the relative position that a query at i sees a key at j at."""
    if abs(i - j) < neighbours:
        return i - j
    if i < j:
        return -distance(j, i, neighbours, group)
    return i // group - j // group + neighbours - neighbours // group


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
    group: int,
) -> Array:
    """Return the context (H, Lq, d)."""
    repeat = q.shape[0] // k.shape[0]
    thetas = frequencies("none", q.shape[-1], base)

    def score(h: int, i: int, j: int) -> float:
        apart = distance(query_at[i], key_at[j], neighbours, group)
        return dot(turn(q[h, i], apart, thetas, False, 1.0), k[h // repeat, j]) * scaling

    return loop_attention(q, k, v, visible, score)

"""A free bias per head and clipped distance, s + b[h, clip(Δ, −R, R)]: Liu et al. 2021, 2103.14030, equation 4."""

from tests.oracles.loops import Array, dot, loop_attention


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    table: Array,
    first: int,
) -> Array:
    """Return the context (H, Lq, d); column c of `table` (H, entries) belongs to distance first + c."""
    group = q.shape[0] // k.shape[0]
    last = first + table.shape[1] - 1

    def score(h: int, i: int, j: int) -> float:
        distance = min(max(query_at[i] - key_at[j], first), last)
        return dot(q[h, i], k[h // group, j]) * scaling + table[h, distance - first]

    return loop_attention(q, k, v, visible, score)

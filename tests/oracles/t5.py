"""T5's relative bias: Raffel et al. 2020, 1910.10683, section 2.1; buckets as in the authors' Mesh TensorFlow code."""

from tests.oracles.loops import Array, dot, loop_attention


def bucket(relative: int, num_buckets: int, max_distance: int, causal: bool) -> int:
    """Return the bucket of relative = key − query, in whole numbers only.

    Half of the buckets hold one distance each; bucket `exact + t` begins at exact·(max/exact)^(t/far), that is at the
    first n with n^far ≥ max^t·exact^(far−t).
    """
    first = 0
    if not causal:
        num_buckets //= 2
        first = num_buckets if relative > 0 else 0
    n = max(-relative, 0) if causal else abs(relative)
    exact = num_buckets // 2
    if n < exact:
        return first + n
    far = num_buckets - exact
    t = 0
    while t + 1 < far and n**far >= max_distance ** (t + 1) * exact ** (far - t - 1):
        t += 1
    return first + exact + t


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    table: Array,
    max_distance: int,
    causal: bool,
) -> Array:
    """Return the context (H, Lq, d); `table` is (num_buckets, H)."""
    group = q.shape[0] // k.shape[0]

    def score(h: int, i: int, j: int) -> float:
        row = bucket(key_at[j] - query_at[i], table.shape[0], max_distance, causal)
        return dot(q[h, i], k[h // group, j]) * scaling + table[row, h]

    return loop_attention(q, k, v, visible, score)

"""Shaw's relative positions: Shaw et al. 2018, 1803.02155, equations 3 to 5.

With `query_and_key`, BERT's relative_key_query as transformers 4 computed it: keys are multiplied with the vectors too.
"""

from tests.oracles.loops import Array, dot, loop_attention


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    key_table: Array,
    value_table: Array | None,
    query_and_key: bool = False,
) -> Array:
    """Return the context (H, Lq, d); the tables w are (2K + 1, d), row K being distance 0."""
    group = q.shape[0] // k.shape[0]
    limit = key_table.shape[0] // 2

    def row(i: int, j: int) -> int:
        return max(-limit, min(limit, key_at[j] - query_at[i])) + limit

    def score(h: int, i: int, j: int) -> float:
        vector = key_table[row(i, j)]
        by_key = dot(k[h // group, j], vector) if query_and_key else 0.0
        return (dot(q[h, i], k[h // group, j] + vector) + by_key) * scaling

    extra = None if value_table is None else (lambda i, j: value_table[row(i, j)])
    return loop_attention(q, k, v, visible, score, extra)

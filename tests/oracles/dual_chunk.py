"""Dual chunk attention: An et al. 2024, 2402.17463, section 3: positions within, after one and after several chunks."""

from tests.oracles.loops import Array, dot, loop_attention
from tests.oracles.rope import frequencies, turn


def positions(i: int, j: int, chunk: int, local: int) -> tuple[int, int]:
    """Return the positions by which a query at i and a key at j before it are rotated; c = s + w."""
    key, pretrained = j % chunk, chunk + local
    between = i // chunk - j // chunk
    if between == 0:
        return i % chunk, key
    if between == 1:
        return (i % chunk + chunk if i % chunk < local else pretrained - 1), key
    return pretrained - 1, key


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    base: float,
    chunk: int,
    local: int,
) -> Array:
    """Return the context (H, Lq, d)."""
    repeat = q.shape[0] // k.shape[0]
    thetas = frequencies("none", q.shape[-1], base)

    def score(h: int, i: int, j: int) -> float:
        query, key = positions(query_at[i], key_at[j], chunk, local)
        turned = turn(q[h, i], query, thetas, False, 1.0), turn(k[h // repeat, j], key, thetas, False, 1.0)
        return dot(*turned) * scaling

    return loop_attention(q, k, v, visible, score)

"""Attention as a plain float64 loop over heads, queries and keys: what every oracle fills with its own score."""

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray


def loop_attention(
    q: Array,
    k: Array,
    v: Array,
    visible: Sequence[Sequence[bool]],
    score: Callable[[int, int, int], float],
    extra_value: Callable[[int, int], Array] | None = None,
) -> Array:
    """Return Σ_j softmax_j(score)·(v_j + extra_value), (H, Lq, d).

    Args:
        q: queries (H, Lq, d), float64; only its shape is read here.
        k: keys (Hkv, Lk, d); only its shape is read here.
        v: values (Hkv, Lk, d).
        visible: visible[i][j] says whether query i may see key j. A query that sees nothing gives zeros.
        score: the score of (head, query, key), scaling included.
        extra_value: what is added to the value that (query, key) reads.
    """
    heads, queries, _ = q.shape
    group = heads // k.shape[0]
    context = np.zeros((heads, queries, v.shape[-1]))
    for h in range(heads):
        for i in range(queries):
            seen = [j for j in range(k.shape[1]) if visible[i][j]]
            if not seen:
                continue
            scores = [score(h, i, j) for j in seen]
            exponentials = [math.exp(s - max(scores)) for s in scores]
            for exponential, j in zip(exponentials, seen, strict=True):
                value = v[h // group, j] if extra_value is None else v[h // group, j] + extra_value(i, j)
                context[h, i] += exponential / sum(exponentials) * value
    return context


def dot(a: Array, b: Array) -> float:
    """Return a·b, term by term."""
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))

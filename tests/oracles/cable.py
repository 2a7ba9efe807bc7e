"""CABLE: Veisi et al. 2025, 2503.08067, section 3, with the activations of the authors' code."""

import math

from tests.oracles.loops import Array, dot, loop_attention


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    hidden_states: Array,
    weight: Array,
    shift: Array,
    factor_weight: Array | None = None,
    factor_shift: Array | None = None,
) -> Array:
    """Return the context (H, Lq, d); without a factor weight all factors are 1."""
    group = q.shape[0] // k.shape[0]
    first = k.shape[1] - q.shape[1]

    def step(h: int, t: int) -> float:
        return max(0.0, dot(weight[h], hidden_states[t]) + float(shift[h]))

    def factor(h: int, t: int) -> float:
        if factor_weight is None or factor_shift is None:
            return 1.0
        return math.log(1 + math.exp(dot(factor_weight[h], hidden_states[t]) + float(factor_shift[h])))

    def score(h: int, i: int, j: int) -> float:
        at = first + i
        between = [t for t in range(min(at, j) + 1, max(at, j) + 1) if visible[i][t]]
        return dot(q[h, i], k[h // group, j]) * scaling - factor(h, at) * sum(step(h, t) for t in between)

    return loop_attention(q, k, v, visible, score)

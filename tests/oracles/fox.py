"""FoX: Lin et al. 2025, 2503.02130, equations 3 to 5: the bias is the sum of the log gates after the key."""

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
) -> Array:
    """Return the context (H, Lq, d); gates σ(weight[h]·hidden_states[t] + shift[h]) of the tokens that a query sees."""
    group = q.shape[0] // k.shape[0]
    first = k.shape[1] - q.shape[1]

    def log_gate(h: int, t: int) -> float:
        return -math.log(1 + math.exp(-(dot(weight[h], hidden_states[t]) + float(shift[h]))))

    def score(h: int, i: int, j: int) -> float:
        between = [t for t in range(j + 1, first + i + 1) if visible[i][t]]
        return dot(q[h, i], k[h // group, j]) * scaling + sum(log_gate(h, t) for t in between)

    return loop_attention(q, k, v, visible, score)

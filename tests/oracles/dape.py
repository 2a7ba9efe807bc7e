"""Data-adaptive positional encoding: Zheng et al. 2024, 2405.14722, and the authors' code, without its last constant.

The bias under it is given as a function of head and distance.
"""

from collections.abc import Callable

from tests.oracles.loops import Array, dot, loop_attention


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    bias: Callable[[int, int], float],
    hidden_weight: Array,
    hidden_bias: Array,
    output_weight: Array,
) -> Array:
    """Return the context (H, Lq, d); the network's weights are (W, 2H), (W,) and (H, W)."""
    heads = q.shape[0]
    group = heads // k.shape[0]

    def score(h: int, i: int, j: int) -> float:
        scores = [dot(q[n, i], k[n // group, j]) * scaling for n in range(heads)]
        biases = [bias(n, query_at[i] - key_at[j]) for n in range(heads)]
        total = scores[h] + biases[h]
        for weights, constant, factor in zip(hidden_weight, hidden_bias, output_weight[h], strict=True):
            x = sum(w * value for w, value in zip(weights, scores + biases, strict=True)) + constant
            total += factor * (x if x > 0 else 0.01 * x)
        return total

    return loop_attention(q, k, v, visible, score)

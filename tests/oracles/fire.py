"""FIRE: Li et al. 2024, 2310.04418: progressive interpolation with a threshold, as in the paper and its code.

The encoder form, ψ(|Δ|)/ψ(max(n, T)) with an input of ±1 for the side, is this package's.
"""

import math

from tests.oracles.loops import Array, dot, loop_attention


def network(inputs: list[float], hidden: Array, hidden_bias: Array, output: Array, output_bias: float) -> float:
    """Return one head's output of the two-layer network with ReLU."""
    total = output_bias
    for weights, bias, factor in zip(hidden, hidden_bias, output, strict=True):
        total += factor * max(0.0, sum(w * x for w, x in zip(weights, inputs, strict=True)) + bias)
    return total


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    causal: bool,
    c: float,
    threshold: float,
    hidden: Array,
    hidden_bias: Array,
    output: Array,
    output_bias: Array,
) -> Array:
    """Return the context (H, Lq, d); the network's weights are hidden (W, inputs) and output (H, W)."""
    group = q.shape[0] // k.shape[0]

    def psi(x: float) -> float:
        return math.log(abs(c) * x + 1)

    def score(h: int, i: int, j: int) -> float:
        distance = query_at[i] - key_at[j]
        scale = max(query_at[i] if causal else max(query_at) + 1, abs(threshold))
        inputs = [psi(abs(distance)) / (psi(scale) + 1e-6)]
        if not causal:
            inputs.append(1.0 if distance >= 0 else -1.0)
        bias = network(inputs, hidden, hidden_bias, output[h], output_bias[h])
        return dot(q[h, i], k[h // group, j]) * scaling + bias

    return loop_attention(q, k, v, visible, score)

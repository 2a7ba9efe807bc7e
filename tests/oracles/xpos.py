"""xPos: Sun et al. 2023, 2212.10554, section 2: the rotation of RoPE and the decay ζ^(i − j), pair by pair.

The score is written as the paper's relative form, Re(q·k̄·e^(i(m − n)θ))·ζ^((m − n)/512), so nothing here depends on an
absolute position.
"""

import cmath

from tests.oracles.loops import Array, loop_attention


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    base: float,
    scale_base: float,
    interleaved: bool,
) -> Array:
    """Return the context (H, Lq, d)."""
    group = q.shape[0] // k.shape[0]
    dim = q.shape[-1]

    def score(h: int, i: int, j: int) -> float:
        distance = query_at[i] - key_at[j]
        total = 0.0
        for n in range(dim // 2):
            a, b = (2 * n, 2 * n + 1) if interleaved else (n, n + dim // 2)
            query, key = complex(q[h, i, a], q[h, i, b]), complex(k[h // group, j, a], k[h // group, j, b])
            theta = base ** (-2 * n / dim)
            zeta = (2 * n / dim + 0.4) / 1.4
            turned = query * key.conjugate() * cmath.exp(1j * distance * theta)
            total += turned.real * zeta ** (distance / scale_base)
        return total * scaling

    return loop_attention(q, k, v, visible, score)

"""RoPE: Su et al. 2021, 2104.09864, equations 13 to 15: pairs of dimensions as complex numbers, times exp(i·pos·θ).

Scalings: linear (Chen et al. 2023, 2306.15595, equation 4), ntk and dynamic (bloc97's and emozilla's, as reported in
section 3 of Peng et al. 2023, 2309.00071), yarn (the same section; the ramp runs over the index of the dimension as in
the authors' code, where the paper's γ runs over its number of turns), longrope (Ding et al. 2024, 2402.13753, section
3), llama3 (Meta's released code of Llama 3.1), proportional (p-RoPE, Barbero et al. 2024, 2410.06205).

With `cycles_within`, pairs whose unscaled frequency is below 2π over that length stand still (FoPE, Hua et al. 2024,
2412.17739, equation 13); with `cos_sums` and `sin_sums` the others are the sums of that equation, whose real and
imaginary parts have coefficients of their own. With `turning`, only the named pairs of each key head turn (partial
RoPE, Ji et al. 2025, 2502.14837, section 3.1), which `chosen_pairs` chooses as S_2-norm does.
"""

import cmath
import math
from typing import Any

import numpy as np

from tests.oracles.loops import Array, dot, loop_attention


def frequencies(
    scaling_type: str,
    rotated: int,
    base: float,
    factor: float | None = None,
    train_length: int = 0,
    length: int = 0,
    **options: Any,
) -> list[float]:
    """Return θ_n of the rotated/2 pairs for a text of `length` tokens."""
    s = factor or 1.0
    pairs = rotated // 2
    if scaling_type == "ntk":
        base = base * s ** (rotated / (rotated - 2))
    if scaling_type == "dynamic" and length > train_length:
        base = base * (s * length / train_length - (s - 1)) ** (rotated / (rotated - 2))
    plain = [base ** (-2 * n / rotated) for n in range(pairs)]
    if scaling_type == "linear":
        return [theta / s for theta in plain]
    if scaling_type == "yarn":
        return [blend(theta, s, yarn_keep(n, rotated, base, train_length, **options)) for n, theta in enumerate(plain)]
    if scaling_type == "longrope":
        divisors = options["long_factor"] if length > train_length else options["short_factor"]
        return [theta / divisor for theta, divisor in zip(plain, divisors, strict=True)]
    if scaling_type == "llama3":
        return [blend(theta, s, llama3_keep(theta, train_length, **options)) for theta in plain]
    if scaling_type == "proportional":
        turning = int(options["share"] * rotated // 2)
        return [theta / s if n < turning else 0.0 for n, theta in enumerate(plain)]
    return plain


def blend(theta: float, factor: float, keep: float) -> float:
    """Return keep·θ + (1 − keep)·θ/s."""
    return keep * theta + (1 - keep) * theta / factor


def yarn_keep(
    n: int, rotated: int, base: float, train_length: int, beta_fast: float, beta_slow: float, truncate: bool
) -> float:
    """Return 1 for pairs that turn more than beta_fast times over the train length, 0 below beta_slow times."""

    def pair_with(turns: float) -> float:
        # The pair n for which train_length / (2π·base^(2n/rotated)) = turns.
        return rotated * math.log(train_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_with(beta_fast), pair_with(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    if low == high:
        high += 0.001
    return 1 - min(1.0, max(0.0, (n - low) / (high - low)))


def llama3_keep(theta: float, train_length: int, low_freq_factor: float, high_freq_factor: float) -> float:
    """Return 1 for wavelengths below T/high, 0 above T/low, linear in T/wavelength between."""
    turns = train_length * theta / (2 * math.pi)
    return min(1.0, max(0.0, (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)))


def attention_factor(scaling_type: str, factor: float | None, train_length: int) -> float:
    """Return the factor on the rotated q and on the rotated k."""
    if scaling_type == "yarn" and factor is not None:
        return 0.1 * math.log(factor) + 1
    if scaling_type == "longrope" and factor is not None:
        return math.sqrt(1 + math.log(factor) / math.log(train_length))
    return 1.0


def turn(x: Array, position: float, thetas: list[float], interleaved: bool, factor: float) -> Array:
    """Return one vector x (d,) with its first 2·len(thetas) dimensions turned and multiplied by `factor`."""
    return times(x, [cmath.exp(1j * position * theta) * factor for theta in thetas], interleaved)


def times(x: Array, numbers: list[complex], interleaved: bool) -> Array:
    """Return one vector x (d,) whose pairs, as complex numbers, are multiplied by `numbers`."""
    product = np.array(x, dtype=np.float64)
    for n, number in enumerate(numbers):
        a, b = (2 * n, 2 * n + 1) if interleaved else (n, n + len(numbers))
        pair = complex(x[a], x[b]) * number
        product[a], product[b] = pair.real, pair.imag
    return product


def fourier_sums(position: float, thetas: list[float], cos_sums: Array, sin_sums: Array) -> list[complex]:
    """Return f(ω_m) of equation 13 for each pair m; `cos_sums` and `sin_sums` are one head's a_ω, [ω, m]."""
    numbers = []
    for m, theta in enumerate(thetas):
        number = cmath.exp(1j * position * theta)
        if m < cos_sums.shape[1]:
            for w in range(cos_sums.shape[0]):
                real, imaginary = math.cos(position * thetas[w]), math.sin(position * thetas[w])
                number += complex(cos_sums[w, m] * real, sin_sums[w, m] * imaginary)
        numbers.append(number)
    return numbers


def chosen_pairs(queries: Array, keys: Array, kept: int) -> list[list[int]]:
    """Return the pairs of each key head with the largest ‖q‖·‖k‖, for queries (B, H, n, d) and keys (B, Hkv, L, d).

    The norms are means over texts and positions; products are summed over the query heads that share keys.
    """
    half, group = keys.shape[-1] // 2, queries.shape[1] // keys.shape[1]

    def mean_norm(x: Array, head: int, n: int) -> float:
        vectors = x[:, head].reshape(-1, x.shape[-1])
        return sum(math.hypot(v[n], v[n + half]) for v in vectors) / len(vectors)

    chosen = []
    for h in range(keys.shape[1]):
        of_group = range(h * group, (h + 1) * group)
        contribution = [sum(mean_norm(queries, g, n) * mean_norm(keys, h, n) for g in of_group) for n in range(half)]
        chosen.append(sorted(range(half), key=lambda n: -contribution[n])[:kept])
    return chosen


def attention_oracle(
    q: Array,
    k: Array,
    v: Array,
    query_at: list[int],
    key_at: list[int],
    visible: list[list[bool]],
    scaling: float,
    rotated: int,
    interleaved: bool,
    scaling_type: str,
    base: float,
    factor: float | None = None,
    train_length: int = 0,
    cycles_within: int | None = None,
    cos_sums: Array | None = None,
    sin_sums: Array | None = None,
    turning: list[list[int]] | None = None,
    **options: Any,
) -> Array:
    """Return the context (H, Lq, d); the text's length is its last position plus one."""
    group = q.shape[0] // k.shape[0]
    length = max(query_at) + 1
    thetas = frequencies(scaling_type, rotated, base, factor, train_length, length, **options)
    if cycles_within is not None:
        plain = [base ** (-2 * n / rotated) for n in range(rotated // 2)]
        thetas = [t if own * cycles_within >= 2 * math.pi else 0.0 for t, own in zip(thetas, plain, strict=True)]
    multiplier = attention_factor(scaling_type, factor, train_length)

    def turned(x: Array, position: int, key_head: int) -> Array:
        own = thetas
        if turning is not None:
            own = [theta if n in turning[key_head] else 0.0 for n, theta in enumerate(thetas)]
        if cos_sums is None or sin_sums is None:
            return turn(x, position, own, interleaved, multiplier)
        sums = fourier_sums(position, own, cos_sums[key_head], sin_sums[key_head])
        return times(x, [number * multiplier for number in sums], interleaved)

    def score(h: int, i: int, j: int) -> float:
        query, key = turned(q[h, i], query_at[i], h // group), turned(k[h // group, j], key_at[j], h // group)
        return dot(query, key) * scaling

    return loop_attention(q, k, v, visible, score)

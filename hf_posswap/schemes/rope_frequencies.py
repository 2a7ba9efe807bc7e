"""Rotary frequencies θ_n of RoPE's scalings for longer texts, float32, by the papers' formulas.

Each function returns (…, r/2) frequencies for r rotated dimensions. The float32 operations run in the order of the
reference implementations, so that checkpoints made with those give equal logits.
"""

import math

import torch
from torch import Tensor

from hf_posswap.schemes.base import ModelFacts
from hf_posswap.schemes.rope_config import RopeConfig


def plain_frequencies(
    rotated: int, base: float, spectrum: int | None = None, device: torch.device | None = None
) -> Tensor:
    """θ_n = base^(−2n/spectrum) for n = 0…rotated/2−1 (Su et al., 2104.09864, equation 15)."""
    exponent = torch.arange(0, rotated, 2, dtype=torch.int64, device=device).float() / (spectrum or rotated)
    return 1.0 / (base**exponent)


def yarn_frequencies(rotated: int, config: RopeConfig, device: torch.device | None = None) -> Tensor:
    """YaRN (Peng et al., 2309.00071, equations 18–23): θ/s for slow dimensions, θ for fast ones, a ramp between.

    A dimension is slow if it turns fewer than `beta_slow` times over the train length, fast if more than `beta_fast`
    times. Between the two the ramp is linear in the dimension's index, as in the authors' code, in transformers and so
    in every released checkpoint. In the paper it is linear in the number of turns, which gives other frequencies.
    """
    assert config.factor is not None
    assert config.original_length is not None
    assert config.base is not None
    length, base = config.original_length, config.base

    def dimension_of(turns: float) -> float:
        return rotated * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_of(config.beta_fast), dimension_of(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    if low == high:
        high += 0.001
    positions = base_powers(rotated, base, device)
    ramp = ((torch.arange(rotated // 2, dtype=torch.float32, device=device) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (config.factor * positions) * (1 - keep) + 1.0 / positions * keep


def base_powers(rotated: int, base: float, device: torch.device | None = None) -> Tensor:
    """base^(2n/rotated), float32."""
    return base ** (torch.arange(0, rotated, 2, device=device).float() / rotated)


def llama3_frequencies(rotated: int, config: RopeConfig, device: torch.device | None = None) -> Tensor:
    """Llama 3.1's scaling: frequencies of wavelength > T/low over the factor, < T/high unchanged, blended between."""
    assert config.factor is not None
    assert config.original_length is not None
    assert config.base is not None
    frequencies = plain_frequencies(rotated, config.base, device=device)
    wavelength = 2 * math.pi / frequencies
    low, high = config.low_freq_factor, config.high_freq_factor
    slow = wavelength > config.original_length / low
    fast = wavelength < config.original_length / high
    scaled = torch.where(slow, frequencies / config.factor, frequencies)
    blend = (config.original_length / wavelength - low) / (high - low)
    blended = (1 - blend) * scaled / config.factor + blend * scaled
    return torch.where(slow | fast, scaled, blended)


def proportional_frequencies(head_dim: int, config: RopeConfig, device: torch.device | None = None) -> Tensor:
    """p-RoPE (Barbero et al., 2410.06205): the spectrum of all dimensions, its lowest (1 − p) part set to 0."""
    assert config.base is not None
    angles = int((config.partial_rotary_factor or 1) * head_dim // 2)
    turning = plain_frequencies(2 * angles, config.base, spectrum=head_dim, device=device)
    frequencies = torch.cat([turning, turning.new_zeros(head_dim // 2 - angles)])
    return frequencies / (config.factor or 1.0)


def dynamic_frequencies(rotated: int, config: RopeConfig, lengths: Tensor) -> Tensor:
    """Dynamic NTK: base·(f·n/T − (f − 1))^(r/(r − 2)) for a text of n > T tokens; (B, r/2) for lengths (B, 1)."""
    assert config.factor is not None
    assert config.original_length is not None
    assert config.base is not None
    length = lengths.clamp(min=config.original_length).float()
    stretch = config.factor * length / config.original_length - (config.factor - 1)
    base = config.base * stretch ** (rotated / (rotated - 2))
    exponent = torch.arange(0, rotated, 2, dtype=torch.int64, device=lengths.device).float() / rotated
    return 1.0 / (base**exponent)


def longrope_frequencies(rotated: int, config: RopeConfig, lengths: Tensor) -> Tensor:
    """LongRoPE (Ding et al., 2402.13753): θ_n divided by a list of factors; texts longer than T have their own list."""
    assert config.short_factor is not None
    assert config.long_factor is not None
    assert config.base is not None
    short = torch.tensor(config.short_factor, dtype=torch.float32, device=lengths.device)
    long = torch.tensor(config.long_factor, dtype=torch.float32, device=lengths.device)
    factors = torch.where(lengths > (config.original_length or 0), long, short)
    exponent = torch.arange(0, rotated, 2, dtype=torch.int64, device=lengths.device).float() / rotated
    return 1.0 / (factors * config.base**exponent)


def attention_factor(config: RopeConfig) -> float:
    """Return the factor on cos and sin. It scales the rotated dimensions' part of the scores by its square."""
    if config.attention_factor is not None:
        return config.attention_factor
    if config.scaling == "yarn" and config.factor is not None and config.factor > 1:
        return 0.1 * math.log(config.factor) + 1.0
    if config.scaling == "longrope" and config.factor is not None and config.factor > 1:
        assert config.original_length is not None
        return math.sqrt(1 + math.log(config.factor) / math.log(config.original_length))
    return 1.0


def learnt_length(config: RopeConfig, facts: ModelFacts) -> int:
    """Return T, the length over which pairs have been trained."""
    return config.original_length or facts.train_length


def turn_once(config: RopeConfig, facts: ModelFacts, device: torch.device | None = None) -> Tensor:
    """Return which pairs make a full turn over T before the scaling, bool (r/2,): the first ones (FoPE's floor)."""
    assert config.base is not None
    learnt = plain_frequencies(config.rotated(facts.head_dim), config.base, device=device)
    return learnt >= 2 * math.pi / learnt_length(config, facts)


def turning_pairs(config: RopeConfig, facts: ModelFacts) -> int:
    """Return the number of pairs that make a full turn over T before the scaling."""
    return int(turn_once(config, facts, torch.device("cpu")).sum())  # a model may be under construction without values


def kept_pairs(config: RopeConfig, facts: ModelFacts) -> int:
    """Return r, the number of pairs of a head that turn with `frequencies=chosen`."""
    assert config.kept is not None
    return round(config.kept * (facts.head_dim // 2))

"""T5's relative bias: one scalar per head and logarithmic distance bucket (Raffel et al., 1910.10683)."""

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import Curve, pooled
from hf_posswap.schemes.relative import bias_by_distance


@dataclass(frozen=True, kw_only=True)
class T5Config(SchemeConfig):
    """Options of `t5`."""

    name: ClassVar[str] = "t5"

    num_buckets: int = option(32, "Number of buckets; an encoder uses half of them for each side.", minimum=4)
    max_distance: int = option(128, "Distance from which on all keys share the last bucket.", minimum=2)
    per_layer: bool = option(False, "A table in each layer. False: one table shared by all layers, as in T5.")

    def validate(self) -> None:
        """Refuse a number of buckets that cannot be divided, and a `max_distance` without logarithmic buckets."""
        if self.num_buckets % 4:
            raise SchemeConfigError(f"t5 option 'num_buckets' is {self.num_buckets}; it must be a multiple of 4.")
        if self.max_distance <= self.num_buckets // 2:
            raise SchemeConfigError(
                f"t5 option 'max_distance' is {self.max_distance}; it must be greater than num_buckets / 2 = "
                f"{self.num_buckets // 2}, or the logarithmic buckets would be empty."
            )


LONGEST_LISTED = 2**16
"""Largest `max_distance` for which the first distance of each bucket is looked up in a list of all distances."""


def t5_bucket(distance: Tensor, num_buckets: int, max_distance: int, causal: bool) -> Tensor:
    """Return the bucket of each relative distance, int64, in the shape of `distance`.

    Half of the buckets hold one distance each, the other half grow logarithmically up to `max_distance`
    (section 2.1 and the authors' code). In an encoder the keys to the right (Δ < 0) use the upper half of the buckets.

    Args:
        distance: Δ = i − j, int64.
        num_buckets: number of buckets, over both sides in an encoder.
        max_distance: the distance from which on everything falls into the last bucket.
        causal: whether only Δ ≥ 0 occurs; smaller ones share bucket 0.
    """
    real = type(distance) is Tensor and not (distance.is_meta or torch.compiler.is_compiling())
    if real and max_distance <= LONGEST_LISTED:
        return _bucket_by_start(distance, num_buckets, max_distance, causal)
    return _bucket_by_formula(distance, num_buckets, max_distance, causal)


def _bucket_by_start(distance: Tensor, num_buckets: int, max_distance: int, causal: bool) -> Tensor:
    """Return what `_bucket_by_formula` returns, from the first distance of each bucket: one operation for a dozen."""
    if causal:
        starts = torch.tensor(_starts(num_buckets, max_distance), device=distance.device)
        return torch.bucketize(distance, starts, right=True)
    half = num_buckets // 2
    starts = torch.tensor(_starts(half, max_distance), device=distance.device)
    return torch.bucketize(distance.abs(), starts, right=True) + (distance < 0) * half


@cache
def _starts(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """Return the first distance of each bucket but the first, in a causal model."""
    distance = torch.arange(max_distance + 1, device="cpu")
    buckets = _bucket_by_formula(distance, num_buckets, max_distance, causal=True)
    return tuple(torch.searchsorted(buckets, torch.arange(1, num_buckets, device="cpu")).tolist())


def _bucket_by_formula(distance: Tensor, num_buckets: int, max_distance: int, causal: bool) -> Tensor:
    """See `t5_bucket`."""
    side = torch.zeros_like(distance)
    if not causal:
        num_buckets //= 2
        side = (distance < 0).long() * num_buckets
    magnitude = distance.clamp(min=0) if causal else distance.abs()
    exact = num_buckets // 2
    # T5 checkpoints were trained with the product in this order, in float32.
    log_ratio = torch.log(magnitude.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (log_ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return side + torch.where(magnitude < exact, magnitude, far)


def bucket_bias(table: Tensor, positions: Positions, config: T5Config, buckets: Tensor | None) -> Bias:
    """Return the bias that looks up `table` (num_buckets, H) by bucket.

    Args:
        table: bias of each bucket and head, any dtype.
        positions: positions of this forward.
        config: the scheme's options.
        buckets: buckets of `positions.distances`, if positions are consecutive.
    """
    columns = table.float().t()
    if buckets is not None:
        if torch.is_grad_enabled() and table.requires_grad:
            return bias_by_distance(positions, lambda _: columns[:, buckets])
        return bias_by_distance(positions, lambda _: columns.index_select(1, buckets))  # three times as fast
    causal = positions.causal
    return bias_by_distance(
        positions, lambda distance: columns[:, t5_bucket(distance, config.num_buckets, config.max_distance, causal)]
    )


def fitted_table(curve: Curve, config: T5Config, causal: bool) -> Tensor:
    """Return the table (num_buckets, H) of a curve's weighted bucket means."""
    buckets = t5_bucket(curve.distances, config.num_buckets, config.max_distance, causal)
    return curve.mean_by_group(buckets, config.num_buckets).t()


class T5Layer(SchemeLayer):
    """Returns the bias of one layer; holds the table if each layer has its own."""

    def __init__(self, scheme: "T5Bias") -> None:
        super().__init__()
        self.config = scheme.config
        self.causal = scheme.facts.causal
        self.table = scheme.make_table() if scheme.config.per_layer else None

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`."""
        if self.table is None:
            return inputs.prepared
        return bucket_bias(self.table, inputs.positions, self.config, inputs.prepared)

    def fit(self, curve: Curve) -> bool:
        """Set the layer's table to the curve's bucket means, if the layer has a table."""
        if self.table is None:
            return False
        with torch.no_grad():
            self.table.copy_(fitted_table(curve, self.config, self.causal))
        return True


@register_scheme
class T5Bias(Scheme):
    """A learned scalar b[bucket(Δ), h] on the scaled scores.

    The table starts at zero, which means no positional information until it is trained or calibrated.
    """

    name = "t5"
    pretty_name = "T5 bias"
    paper = "Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"
    paper_url = "https://arxiv.org/abs/1910.10683"
    formula = "s + b[bucket(Δ), h]"
    summary = "A learned scalar per head and logarithmic distance bucket, added to the scores."
    advice = "For healing, as trainable ALiBi: few parameters, no limit, calibrates well, nearly as fast as no bias."
    config_class = T5Config
    config: T5Config

    def __init__(self, config: T5Config, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        self.table = None if config.per_layer else self.make_table()

    def make_table(self) -> nn.Parameter:
        """Return a table of zeros, (num_buckets, H)."""
        return nn.Parameter(torch.zeros(self.config.num_buckets, self.facts.num_heads))

    def prepare(self, positions: Positions) -> Bias | Tensor | None:
        """Return the shared bias, or the buckets with which each layer looks up its own."""
        buckets = None
        if positions.by_index:
            buckets = t5_bucket(
                positions.distances, self.config.num_buckets, self.config.max_distance, positions.causal
            )
        if self.table is None:
            return buckets
        return bucket_bias(self.table, positions, self.config, buckets)

    def fit(self, curves: list[Curve]) -> bool:
        """Set the shared table to the bucket means over all layers, if the layers share it."""
        if self.table is None:
            return False
        with torch.no_grad():
            self.table.copy_(fitted_table(pooled(curves), self.config, self.facts.causal))
        return True

    def make_layer(self, layer_index: int) -> T5Layer:
        """See `Scheme.make_layer`."""
        return T5Layer(self)

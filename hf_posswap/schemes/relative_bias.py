"""A free bias per layer, head and distance, constant beyond a limit. Calibration fits it directly.

It is T5's bias with Shaw's clipping instead of buckets, or Swin's table in one dimension (Liu et al., 2103.14030,
equation 4).
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.relative import bias_by_distance

DEFAULT_LONGEST = 1023


@dataclass(frozen=True, kw_only=True)
class RelativeBiasConfig(SchemeConfig):
    """Options of `relative_bias`."""

    name: ClassVar[str] = "relative_bias"

    max_distance: int | None = option(
        None, "R: keys farther away share the bias at R. None: the train length minus one, at most 1023.", minimum=1
    )

    def resolve(self, facts: ModelFacts) -> "RelativeBiasConfig":
        """Take R from the model's train length."""
        longest = self.max_distance or max(1, min(facts.train_length - 1, DEFAULT_LONGEST))
        return dataclasses.replace(self, max_distance=longest)


def clipped(distance: Tensor, first: int, last: int) -> Tensor:
    """Return the table column of each distance, int64: its index in first…last after clipping to that range."""
    return distance.clamp(first, last) - first


class RelativeBiasLayer(SchemeLayer):
    """The table of one layer: (H, R + 1) for Δ = 0…R in a causal model, (H, 2R + 1) for −R…R in an encoder."""

    def __init__(self, scheme: "RelativeBiasScheme") -> None:
        super().__init__()
        self.first = scheme.first_distance()
        self.last = scheme.longest()
        self.table = nn.Parameter(torch.zeros(scheme.facts.num_heads, scheme.entries()))

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`."""
        table, positions, prepared = self.table.float(), inputs.positions, inputs.prepared
        if prepared is not None:
            return bias_by_distance(positions, lambda _: table[:, prepared])
        return bias_by_distance(positions, lambda distance: table[:, clipped(distance, self.first, self.last)])

    def fit(self, curve: Curve) -> bool:
        """Copy the smoothed curve into the table; a distance that did not occur takes the nearest other value."""
        wanted = torch.arange(self.table.shape[1], device=curve.values.device) + self.first
        with torch.no_grad():
            self.table.copy_(curve.smoothed().at(wanted))
        return True


@register_scheme
class RelativeBiasScheme(Scheme):
    """One scalar per layer, head and distance, added to the scaled scores; keys farther than R share the last one.

    The table starts at zero, which means no positional information until it is trained or calibrated.
    """

    name = "relative_bias"
    pretty_name = "Relative bias"
    paper = "Liu et al. 2021, Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
    paper_url = "https://arxiv.org/abs/2103.14030"
    formula = "s + b[l, h, clip(Δ, −R, R)]"
    summary = "A free scalar per layer, head and distance, added to the scores: what calibration fits directly."
    advice = (
        "As the start of healing: it says most of what a bias of the distance can say about the old model's attention."
    )
    config_class = RelativeBiasConfig
    config: RelativeBiasConfig

    def longest(self) -> int:
        """Return R."""
        assert self.config.max_distance is not None, "the config is resolved before the scheme is made"
        return self.config.max_distance

    def first_distance(self) -> int:
        """Return the distance of a table's first entry."""
        return 0 if self.facts.causal else -self.longest()

    def entries(self) -> int:
        """Return the number of entries for a head."""
        return self.longest() + 1 - self.first_distance()

    def prepare(self, positions: Positions) -> Tensor | None:
        """Return the table columns of `positions.distances`; None if positions are not consecutive."""
        if not positions.by_index:
            return None
        return clipped(positions.distances, self.first_distance(), self.longest())

    def make_layer(self, layer_index: int) -> RelativeBiasLayer:
        """See `Scheme.make_layer`."""
        return RelativeBiasLayer(self)

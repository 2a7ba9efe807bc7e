"""Sandwich: the inner product of two sinusoidal embeddings as a bias (Chi et al., 2212.10356)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.relative import bias_by_distance

BASE = 10000.0


@dataclass(frozen=True, kw_only=True)
class SandwichConfig(SchemeConfig):
    """Options of `sandwich`."""

    name: ClassVar[str] = "sandwich"

    dimension: int = option(128, "d̄, the width of the sinusoidal embeddings whose product is taken; even.", minimum=2)

    def validate(self) -> None:
        """Refuse an odd width: sines and cosines take half of it each."""
        if self.dimension % 2:
            raise SchemeConfigError(f"sandwich option 'dimension' is {self.dimension}; it must be even.")


def sandwich_values(distance: Tensor, num_heads: int, dimension: int) -> Tensor:
    """Return the bias (Σ_n cos(Δ/10000^(2n/d̄)) − d̄/2) / (8h/H), n = 1…d̄/2, float32, (H, …).

    Args:
        distance: Δ, int64, any shape.
        num_heads: H; head h = 1…H has the compression ratio 8h/H.
        dimension: d̄.
    """
    half = dimension // 2
    frequencies = BASE ** (-torch.arange(1, half + 1, device=distance.device).float() / half)
    magnitude, total = distance.float(), torch.zeros_like(distance, dtype=torch.float32)
    # One frequency after the other: all of them at once would need d̄/2 times the memory of a block of scores.
    for frequency in frequencies:
        total = total + torch.cos(magnitude * frequency)
    ratios = torch.arange(1, num_heads + 1, device=distance.device).float() * (8.0 / num_heads)
    return (total - half) / ratios.view(-1, *[1] * distance.dim())


class SandwichLayer(SchemeLayer):
    """Returns the bias that all layers share."""

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`."""
        return inputs.prepared


@register_scheme
class Sandwich(Scheme):
    """A fixed bias that falls with the logarithm of the distance: the inner product of two sinusoidal embeddings.

    The sum over n starts at 1, as in the paper's formula. The bias is 0 at Δ = 0 and symmetric, so encoders use it
    unchanged.
    """

    name = "sandwich"
    pretty_name = "Sandwich"
    paper = "Chi et al. 2023, Dissecting Transformer Length Extrapolation via the Lens of Receptive Field Analysis"
    paper_url = "https://arxiv.org/abs/2212.10356"
    formula = "s + (Σ_n cos(Δ / 10000^(2n/d̄)) − d̄/2) / (8h/H), n = 1…d̄/2"
    summary = "A fixed penalty that falls fast near the query and slowly far from it, at another rate in each head."
    advice = (
        "As a fixed bias with no parameters that falls like a logarithm: between ALiBi's line and no position at all."
    )
    config_class = SandwichConfig
    config: SandwichConfig

    def symmetric(self) -> bool:
        """See `Scheme.symmetric`."""
        return True

    def prepare(self, positions: Positions) -> Bias:
        """The bias that all layers share."""
        heads, dimension = self.facts.num_heads, self.config.dimension
        return bias_by_distance(positions, lambda distance: sandwich_values(distance, heads, dimension))

    def make_layer(self, layer_index: int) -> SandwichLayer:
        """See `Scheme.make_layer`."""
        return SandwichLayer()

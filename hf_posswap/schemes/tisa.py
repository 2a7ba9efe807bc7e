"""TISA: a learned sum of bell curves of the signed distance, per head (Wennberg and Henter, 2106.01950)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import Curve, pooled
from hf_posswap.schemes.relative import bias_by_distance
from hf_posswap.schemes.tisa_fitting import fitted_kernels

OFFSET_STD = 5.0
MEAN, STD = 0.1, 0.01
"""Initial values, as in the authors' code: offsets from N(0, 5), amplitudes and sharpnesses from N(0.1, 0.01)."""


@dataclass(frozen=True, kw_only=True)
class TisaConfig(SchemeConfig):
    """Options of `tisa`."""

    name: ClassVar[str] = "tisa"

    kernels: int = option(5, "S, the number of bell curves of each head.", minimum=1, maximum=64)
    per_layer: bool = option(False, "Bell curves in each layer. False: one set per head, shared by all layers.")
    seed: int = option(0, "Seed of the random start.", minimum=0)


def kernel_sum(distance: Tensor, amplitude: Tensor, sharpness: Tensor, offset: Tensor) -> Tensor:
    """Return Σ_s a_s·exp(−|b_s|·(j − i − c_s)²), in the parameters' dtype, (H, …).

    Args:
        distance: Δ = i − j, any shape; the paper's argument j − i is −Δ.
        amplitude: a, (H, S).
        sharpness: b, (H, S).
        offset: c, (H, S), the value of j − i at which a bell curve has its maximum.
    """
    away = -distance.to(amplitude.dtype)
    total = torch.zeros_like(away).expand(amplitude.shape[0], *away.shape)
    # A loop over bell curves: all of them at once need S times the memory of a block of scores.
    for a, b, c in zip(*(x.unbind(1) for x in (amplitude, sharpness, offset)), strict=True):
        a, b, c = (x.view(-1, *[1] * away.dim()) for x in (a, b, c))
        total = total + a * torch.exp(-b.abs() * (away - c).square())
    return total


class Kernels(nn.Module):
    """The parameters a, b and c of every head's bell curves, (H, S) each.

    Args:
        heads: number of heads H.
        count: number of bell curves S.
        generator: random generator for the initial values.
    """

    def __init__(self, heads: int, count: int, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.randn(3, heads, count, generator=generator)
        self.amplitude = nn.Parameter(MEAN + STD * start[0])
        self.sharpness = nn.Parameter(MEAN + STD * start[1])
        self.offset = nn.Parameter(OFFSET_STD * start[2])

    def values(self, distance: Tensor) -> Tensor:
        """Return the bias, float32, (H, …), at distances of any shape."""
        return kernel_sum(distance, self.amplitude.float(), self.sharpness.float(), self.offset.float())

    @torch.no_grad()
    def fit(self, curve: Curve) -> None:
        """Fit every head's bell curves to its curve by weighted least squares."""
        found = fitted_kernels(curve, self.amplitude.shape[1])
        for parameter, value in zip((self.amplitude, self.sharpness, self.offset), found, strict=True):
            parameter.copy_(value)


class TisaLayer(SchemeLayer):
    """Returns the bias of one layer; holds the bell curves if each layer has its own."""

    def __init__(self, kernels: Kernels | None) -> None:
        super().__init__()
        self.kernels = kernels

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`."""
        return inputs.prepared if self.kernels is None else bias_by_distance(inputs.positions, self.kernels.values)

    def fit(self, curve: Curve) -> bool:
        """Fit the bell curves to the layer's curve, if the layer has its own."""
        if self.kernels is None:
            return False
        self.kernels.fit(curve)
        return True


@register_scheme
class Tisa(Scheme):
    """A bias Σ_s a_s·exp(−|b_s|·(j − i − c_s)²): a sum of S bell curves per head with learned a, b and c.

    The bias depends on the sign of j − i, so a head can attend to the left and to the right differently. Far from every
    c_s the bias is almost zero, so it does not distinguish far keys. The paper covers encoders; a causal model uses the
    same bias for the keys that it sees.
    """

    name = "tisa"
    pretty_name = "TISA"
    paper = (
        "Wennberg and Henter 2021, The Case for Translation-Invariant Self-Attention in Transformer-Based Language "
        "Models"
    )
    paper_url = "https://arxiv.org/abs/2106.01950"
    formula = "s + Σ_s a_hs·exp(−|b_hs|·(j − i − c_hs)²)"
    summary = "A learned sum of bell curves of the signed distance, per head, added to the scores."
    advice = (
        "In encoders, where heads look at fixed places to the left and to the right, with few parameters. "
        "`per_layer=true` with calibration places the bell curves where the old heads looked."
    )
    config_class = TisaConfig
    config: TisaConfig

    def __init__(self, config: TisaConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        self.kernels = None if config.per_layer else self.make_kernels(0)

    def make_kernels(self, layer_index: int) -> Kernels:
        """Return bell curves whose initial values depend on the seed and the layer only."""
        generator = torch.Generator().manual_seed(self.config.seed + layer_index)
        return Kernels(self.facts.num_heads, self.config.kernels, generator)

    def prepare(self, positions: Positions) -> Bias | None:
        """Return the bias that all layers share; None if each layer has its own."""
        return None if self.kernels is None else bias_by_distance(positions, self.kernels.values)

    def fit(self, curves: Sequence[Curve]) -> bool:
        """Fit the bell curves to the weighted mean of all layers' curves, if the layers share them."""
        if self.kernels is None:
            return False
        self.kernels.fit(pooled(curves))
        return True

    def make_layer(self, layer_index: int) -> TisaLayer:
        """See `Scheme.make_layer`."""
        return TisaLayer(self.make_kernels(layer_index) if self.config.per_layer else None)

"""KERPLE: a learned penalty that grows with the logarithm or a power of the distance (Chi et al., 2205.09921)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import Curve, fitted_slopes
from hf_posswap.schemes.relative import bias_by_distance

SMALLEST = 0.01
"""Lower bound of the parameters in the authors' code; the random start keeps this distance from both bounds."""
WIDEST_POWER = 2.0
"""Above it −|Δ|^p is not a conditionally positive definite kernel (equation 4)."""
SEARCH = {"log": (-7.0, 7.0), "power": (-4.0, 4.0)}
"""Range that calibration searches for the raw shape: a from 0.001 to 7 (log form), p from 0.04 to 1.96 (power form)."""
SEARCH_POINTS = 33
SEARCH_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class KerpleConfig(SchemeConfig):
    """Options of `kerple`."""

    name: ClassVar[str] = "kerple"
    variant_option: ClassVar[str | None] = "form"

    form: str = option("log", "log: −p·ln(1 + a·|Δ|). power: −a·|Δ|^p with 0 < p ≤ 2.", choices=("log", "power"))
    per_layer: bool = option(False, "p and a in each layer. False: one pair per head, shared by all layers.")
    seed: int = option(0, "Seed of the random start, p from (0, 2) and a from (0, 1).", minimum=0)


class Kernel(nn.Module):
    """p and a of every head, stored as unconstrained raw numbers that map to positive ones.

    Args:
        heads: H.
        form: "log" or "power".
        generator: random generator for the initial values.
    """

    def __init__(self, heads: int, form: str, generator: torch.Generator) -> None:
        super().__init__()
        self.form = form
        p = (2 * torch.rand(heads, generator=generator)).clamp(SMALLEST, 2 - SMALLEST)
        a = torch.rand(heads, generator=generator).clamp(min=SMALLEST)
        self.raw_p = nn.Parameter(inverse_softplus(p) if form == "log" else torch.logit(p / WIDEST_POWER))
        self.raw_a = nn.Parameter(inverse_softplus(a))

    def values(self, distance: Tensor) -> Tensor:
        """Return the bias, float32, (H, …), at distances of any shape."""
        raw_p, raw_a = (raw.float().view(-1, *[1] * distance.dim()) for raw in (self.raw_p, self.raw_a))
        if self.form == "log":
            return -F.softplus(raw_p) * unit_penalty(distance, raw_a, self.form)
        return -F.softplus(raw_a) * unit_penalty(distance, raw_p, self.form)

    @torch.no_grad()
    def fit(self, curves: Sequence[Curve]) -> None:
        """Fit p and a of every head to the curves by weighted least squares.

        The bias is a factor times a shape. The best factor has a closed form; the shape is searched for on successively
        finer grids.
        """
        heads = curves[0].values.shape[0]
        low, high = (torch.full((heads,), end, device=curves[0].values.device) for end in SEARCH[self.form])
        for _ in range(SEARCH_ROUNDS):
            grid = torch.stack([low + (high - low) * step / (SEARCH_POINTS - 1) for step in range(SEARCH_POINTS)])
            errors = torch.stack([squared_error(curves, shape, self.form) for shape in grid])
            best = errors.argmin(dim=0)
            neighbours = ((best - 1).clamp(min=0), best, (best + 1).clamp(max=SEARCH_POINTS - 1))
            low, shape, high = (grid.gather(0, place[None])[0] for place in neighbours)
        factor = fitted_slopes(curves, unit_penalty(curves[0].distances, shape[:, None], self.form))
        raw_shape, raw_factor = (self.raw_a, self.raw_p) if self.form == "log" else (self.raw_p, self.raw_a)
        raw_shape.copy_(shape)
        raw_factor.copy_(inverse_softplus(factor))


def inverse_softplus(values: Tensor) -> Tensor:
    """Return x with ln(1 + e^x) = values > 0."""
    return values + torch.log(-torch.expm1(-values))


def unit_penalty(distance: Tensor, raw_shape: Tensor, form: str) -> Tensor:
    """Return the penalty with a factor of 1: ln(1 + a·|Δ|) or |Δ|^p, float32, in the broadcast shape of both inputs.

    Args:
        distance: Δ.
        raw_shape: raw a in the log form, raw p in the power form.
        form: "log" or "power".
    """
    magnitude = distance.abs().float()
    if form == "log":
        return torch.log1p(F.softplus(raw_shape) * magnitude)
    return magnitude ** (WIDEST_POWER * torch.sigmoid(raw_shape))


def squared_error(curves: Sequence[Curve], raw_shape: Tensor, form: str) -> Tensor:
    """Return the curves' weighted squared error, (H,), for each head's shape (H,) with the best factor."""
    penalty = unit_penalty(curves[0].distances, raw_shape[:, None], form)
    bias = -fitted_slopes(curves, penalty)[:, None] * penalty
    left = [Curve(curve.distances, curve.values - bias, curve.weights).centred() for curve in curves]
    return torch.stack([(rest.weights * rest.values.square()).sum(1) for rest in left]).sum(0)


class KerpleLayer(SchemeLayer):
    """Returns the bias of one layer; holds the kernel if each layer has its own."""

    def __init__(self, kernel: Kernel | None) -> None:
        super().__init__()
        self.kernel = kernel

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`."""
        return inputs.prepared if self.kernel is None else bias_by_distance(inputs.positions, self.kernel.values)

    def fit(self, curve: Curve) -> bool:
        """Fit p and a to the layer's curve, if the layer has its own."""
        if self.kernel is None:
            return False
        self.kernel.fit([curve])
        return True


@register_scheme
class Kerple(Scheme):
    """A bias of −p·ln(1 + a·|Δ|), or of −a·|Δ|^p, with p and a learned per head.

    Softplus keeps both positive, and a sigmoid keeps p of the power form below 2; the authors' code clamps them after
    each step instead. The power form with p = 1 is ALiBi with learned slopes. In encoders the bias is symmetric; the
    paper covers causal models only.
    """

    name = "kerple"
    pretty_name = "KERPLE"
    paper = "Chi et al. 2022, KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation"
    paper_url = "https://arxiv.org/abs/2205.09921"
    formula = "s − p_h·ln(1 + a_h·|Δ|), or s − a_h·|Δ|^p_h"
    summary = "A learned penalty on the scores that grows with the logarithm, or a power, of the distance."
    advice = (
        "Where ALiBi's line falls too fast: the logarithm leaves far keys within reach, and calibration can fit both "
        "parameters."
    )
    config_class = KerpleConfig
    config: KerpleConfig

    def __init__(self, config: KerpleConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        self.kernel = None if config.per_layer else self.make_kernel(0)

    def make_kernel(self, layer_index: int) -> Kernel:
        """Return a kernel whose initial values depend on the seed and the layer only."""
        generator = torch.Generator().manual_seed(self.config.seed + layer_index)
        return Kernel(self.facts.num_heads, self.config.form, generator)

    def symmetric(self) -> bool:
        """See `Scheme.symmetric`."""
        return True

    def prepare(self, positions: Positions) -> Bias | None:
        """The bias that all layers share; None if each layer has its own."""
        return None if self.kernel is None else bias_by_distance(positions, self.kernel.values)

    def fit(self, curves: list[Curve]) -> bool:
        """Fit p and a to the curves of all layers, if the layers share them."""
        if self.kernel is None:
            return False
        self.kernel.fit(curves)
        return True

    def make_layer(self, layer_index: int) -> KerpleLayer:
        """See `Scheme.make_layer`."""
        return KerpleLayer(self.make_kernel(layer_index) if self.config.per_layer else None)

"""FIRE: a learned function of the distance, normalised by the query's position (Li et al., 2310.04418)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_posswap.common.biases import Bias, DenseBias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import TINY, Curve, pooled
from hf_posswap.schemes.relative import bias_by_distance

STRETCH = 0.1
"""Initial value of c, as in the authors' code (appendix of the paper)."""
EPSILON = 1e-6
"""Added to the denominator, as in the authors' code, so that c = 0 gives no NaN."""
RIDGE = 1e-4
"""Penalty of the fit on the squared changes of the function's slope, relative to the total weight."""


@dataclass(frozen=True, kw_only=True)
class FireConfig(SchemeConfig):
    """Options of `fire`."""

    name: ClassVar[str] = "fire"

    threshold: int | None = option(
        None, "T: up to it the bias depends on the distance alone. None: the train length.", minimum=2
    )
    learn_threshold: bool = option(False, "Learn a factor on T, as the paper does; rows are then made in blocks.")
    width: int = option(32, "Hidden units of the function; an encoder's fit uses half of them a side.", minimum=2)
    per_layer: bool = option(True, "A function in each layer. False: one shared by all layers (FIRE-S).")
    seed: int = option(0, "Seed of the random start.", minimum=0)

    def resolve(self, facts: ModelFacts) -> "FireConfig":
        """Take T from the model's train length."""
        return dataclasses.replace(self, threshold=self.threshold or max(2, facts.train_length))


class Function(nn.Module):
    """The two-layer network f: R → R^H of normalised distances, with c and the factor on T.

    In an encoder f has a second input: 1 for keys at the query or to its left, and −1 for keys to its right.

    f is piecewise linear: its slope changes where a hidden unit switches on or off. The code finds the piece of each
    distance and evaluates its slope and intercept. This gives the same function as the network, with two
    multiplications for each pair and head instead of `width`.

    Args:
        heads: number of heads H.
        width: number of hidden units.
        threshold: T.
        causal: whether f has one input instead of two.
        learn_threshold: whether the factor on T is a parameter.
        generator: random generator for the initial values, whose ranges are those of torch's linear layers.
    """

    def __init__(
        self, heads: int, width: int, threshold: int, causal: bool, learn_threshold: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        inputs = 1 if causal else 2

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * fan_in**-0.5)

        self.threshold = threshold
        self.hidden_weight = uniform(width, inputs, fan_in=inputs)
        self.hidden_bias = uniform(width, fan_in=inputs)
        self.output_weight = uniform(heads, width, fan_in=width)
        self.output_bias = uniform(heads, fan_in=width)
        self.stretch = nn.Parameter(torch.tensor([STRETCH]))
        self.threshold_factor = nn.Parameter(torch.ones(1)) if learn_threshold else None

    def bias(self, positions: Positions) -> Bias:
        """Return f(ψ(|Δ|)/ψ(max(i, T))): one value per distance if the text does not exceed T, rows otherwise."""
        if self._stays_below_threshold(positions):
            return bias_by_distance(positions, lambda distance: self.values(distance, self._reach()))
        return DenseBias(lambda start, stop: self.rows(positions, start, stop))

    def _reach(self) -> Tensor:
        """Return T, float32, (1,)."""
        factor = torch.ones_like(self.stretch) if self.threshold_factor is None else self.threshold_factor
        return (factor.float() * self.threshold).abs()

    def _stays_below_threshold(self, positions: Positions) -> bool:
        """Return whether max(i, T) is T for all queries; False while a graph is traced, where values are unknown."""
        positions.require_known()
        if self.threshold_factor is not None or torch.compiler.is_compiling() or positions.query.is_meta:
            return False
        return positions.farthest + (0 if positions.causal else 1) <= self.threshold  # i, or the text's length

    def rows(self, positions: Positions, start: int, stop: int) -> Tensor:
        """Return the bias of the queries start…stop−1, float32, (B|1, H, stop − start, Lk)."""
        distance = positions.distance_rows(start, stop)
        if positions.causal:
            farthest = positions.query[:, start:stop, None].float()
        else:
            farthest = positions.row_lengths()[..., None].float()
        return self.values(distance, torch.maximum(farthest, self._reach())).transpose(0, 1)

    def normalised(self, distance: Tensor, farthest: Tensor) -> Tensor:
        """Return ψ(|Δ|)/ψ(farthest) with ψ(x) = ln(1 + |c|·x): float32, 0…1."""
        stretch = self.stretch.float().abs()
        return torch.log1p(stretch * distance.abs().float()) / (torch.log1p(stretch * farthest) + EPSILON)

    def values(self, distance: Tensor, farthest: Tensor) -> Tensor:
        """Return f, float32, (H, …), at distances of any shape; `farthest` is broadcastable to `distance`."""
        share = self.normalised(distance, farthest)
        points, slopes, intercepts = self.pieces(1.0)
        piece = torch.bucketize(share.detach(), points)
        if self.hidden_weight.shape[1] == 2:
            others, more_slopes, more_intercepts = self.pieces(-1.0)
            other = torch.bucketize(share.detach(), others) + len(slopes)
            piece = torch.where(distance < 0, other, piece)
            slopes, intercepts = torch.cat((slopes, more_slopes)), torch.cat((intercepts, more_intercepts))
        table = torch.cat((slopes, intercepts), dim=1)
        slope, intercept = F.embedding(piece, table).movedim(-1, 0).chunk(2)
        return slope * share + intercept

    def pieces(self, side: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pieces of f on one side: their ends, slopes and intercepts.

        Args:
            side: second input of f, 1 or −1; ignored if f has one input.

        Returns:
            The points where the slope changes, ascending, (width,), and the slopes and the intercepts, (width + 1, H).
        """
        weight = self.hidden_weight[:, 0].float()
        shift = self.hidden_bias.float()
        if self.hidden_weight.shape[1] == 2:
            shift = shift + side * self.hidden_weight[:, 1].float()
        with torch.no_grad():
            # A unit with weight 0 never switches: its point lies outside 0…1, the range of normalised distances.
            points = (-shift / weight).nan_to_num(nan=2.0, posinf=2.0, neginf=-1.0).clamp(-1.0, 2.0).sort().values
            edges = torch.cat((points[:1] - 1, points, points[-1:] + 1))
            middles = (edges[:-1] + edges[1:]) / 2
            on = (middles[:, None] * weight + shift > 0).float()
        output = self.output_weight.float().t()
        return points, (on * weight) @ output, (on * shift) @ output + self.output_bias.float()

    @torch.no_grad()
    def fit(self, curve: Curve) -> None:
        """Fit f to each head's curve by weighted least squares; c and T do not change.

        Each hidden unit becomes a linear function that falls to zero at one point and is zero beyond it. The points are
        evenly spaced over the curve's normalised distances. So f is linear between the points and constant beyond the
        last. In an encoder, the units of the two sides are separate, and one unit is constant on the right side.
        """
        width, inputs = self.hidden_weight.shape
        share = self.normalised(curve.distances, self._reach()).double()
        seen = (curve.weights > 0).any(0)
        left = curve.distances >= 0
        sides = [(left, 1.0, (width + 1) // 2), (~left, -1.0, width // 2)] if inputs == 2 else [(left, 1.0, width)]
        weights, biases, columns = [], [], []
        for members, side, count in sides:
            here = share[members & seen]
            end = float(here.max()) if len(here) else 1.0
            ramps = count - 1 if side < 0 and count > 1 else count
            ends = torch.arange(1, ramps + 1, device=share.device).double() * (end / ramps)
            columns.append((ends[:, None] - share).clamp(min=0) * members)
            # An encoder's unit is e − x on its own side, and e − 2 − x < 0 on the other side.
            weights.append(torch.stack((-torch.ones_like(ends), side * torch.ones_like(ends)), dim=1)[:, :inputs])
            biases.append(ends - (1 if inputs == 2 else 0))
            if ramps < count:
                columns.append(members.double()[None])
                weights.append(torch.tensor([[0.0, side]], dtype=ends.dtype, device=ends.device))
                biases.append(torch.zeros_like(ends[:1]))
        output, constant = _least_squares(torch.cat(columns), curve, 1 / width)
        for parameter, value in (
            (self.hidden_weight, torch.cat(weights)), (self.hidden_bias, torch.cat(biases)),
            (self.output_weight, output), (self.output_bias, constant),
        ):  # fmt: skip
            parameter.copy_(value)


def _least_squares(columns: Tensor, curve: Curve, spacing: float) -> tuple[Tensor, Tensor]:
    """Return the factors (H, W) of the columns and the constants (H,) that fit each head's curve best, float64.

    Args:
        columns: values of the W hidden units at the curve's N distances, float64, (W, N).
        curve: a bias by distance.
        spacing: distance between the points at which neighbouring units reach zero; scales the penalty.
    """
    weights = curve.weights.double()
    weights = weights / weights.sum(1, keepdim=True).clamp(min=TINY)
    values = curve.values.double()
    middle = weights @ columns.t()
    mean = (weights * values).sum(1)
    centred = columns - middle[..., None]
    weighted = centred * weights[:, None]
    penalty = RIDGE * spacing**2 * torch.eye(columns.shape[0], dtype=columns.dtype, device=columns.device)
    wanted = (weighted * (values - mean[:, None])[:, None]).sum(-1)
    factors = torch.linalg.solve(weighted @ centred.mT + penalty, wanted)
    return factors, mean - (factors * middle).sum(1)


class FireLayer(SchemeLayer):
    """Returns the bias of one layer; holds the function if each layer has its own."""

    def __init__(self, function: Function | None) -> None:
        super().__init__()
        self.function = function

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`."""
        return inputs.prepared if self.function is None else self.function.bias(inputs.positions)

    def fit(self, curve: Curve) -> bool:
        """Fit the function to the layer's curve, if the layer has its own."""
        if self.function is None:
            return False
        self.function.fit(curve)
        return True


@register_scheme
class Fire(Scheme):
    """A bias f(ψ(i − j)/ψ(max(i, T))), where f is a small network, ψ(x) = ln(1 + c·x), and c is learned.

    The distance is normalised by the query's position, so that f sees no new inputs in texts longer than the train
    length. For positions up to the threshold T the denominator is constant. There the bias depends on the distance
    alone and costs as much as T5's; the rows of a longer text are computed for one block of queries at a time. Here T
    is the train length and fixed. The paper learns T (`learn_threshold=true`), and starts from 512 for models trained
    at 2048.

    The paper does not cover encoders. In an encoder the text's length n replaces i, and a second input of f is −1 if
    the key is to the right and 1 otherwise: f(ψ(|Δ|)/ψ(max(n, T)), ±1).
    """

    name = "fire"
    pretty_name = "FIRE"
    paper = "Li et al. 2024, Functional Interpolation for Relative Positions Improves Long Context Transformers"
    paper_url = "https://arxiv.org/abs/2310.04418"
    formula = "s + f_h(ψ(i − j)/ψ(max(i, T))), ψ(x) = ln(1 + c·x)"
    summary = "A small network of the distance as a share of the query's position, added to the scores."
    advice = (
        "To read past the train length with a bias that is learned: a longer text is scaled to the distances that the "
        "network knows. Calibration fits it as closely as `t5` with a table in each layer."
    )
    config_class = FireConfig
    config: FireConfig

    def __init__(self, config: FireConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        self.function = None if config.per_layer else self.make_function(0)

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse to learn the threshold of an encoder."""
        assert isinstance(config, FireConfig)
        if config.learn_threshold and not facts.causal:
            return (
                "learn_threshold is for causal models: an encoder's texts up to T share one scale, which c and the "
                "network's weights learn already, and longer texts do not read T. Leave it out."
            )
        return None

    def make_function(self, layer_index: int) -> Function:
        """Return a function whose initial values depend on the seed and the layer only."""
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed + layer_index)
        assert config.threshold is not None, "the config is resolved before the scheme is made"
        heads, causal = self.facts.num_heads, self.facts.causal
        return Function(heads, config.width, config.threshold, causal, config.learn_threshold, generator)

    def length_dependent(self) -> bool:
        """See `Scheme.length_dependent`: in an encoder the bias depends on the text's length if it exceeds T."""
        return not self.facts.causal

    def prepare(self, positions: Positions) -> Bias | None:
        """Return the bias that all layers share; None if each layer has its own."""
        return None if self.function is None else self.function.bias(positions)

    def fit(self, curves: Sequence[Curve]) -> bool:
        """Fit the function to the weighted mean of all layers' curves, if the layers share it."""
        if self.function is None:
            return False
        self.function.fit(pooled(curves))
        return True

    def make_layer(self, layer_index: int) -> FireLayer:
        """See `Scheme.make_layer`."""
        return FireLayer(self.make_function(layer_index) if self.config.per_layer else None)

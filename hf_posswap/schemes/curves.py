"""What calibration measures of one layer: each head's preference for each distance, and how much it rests on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_posswap.schemes.content import ContentSums

SMOOTHING = 0.08
"""Half width of the smoothing window, as a share of the distance: narrow near the query, wide where pairs are few."""
TINY = 1e-12
"""Keeps a mean over nothing at zero."""


@dataclass(frozen=True)
class Curve:
    """A bias by distance for the heads of one layer, known up to a constant per head.

    Attributes:
        distances: int64, (N,), ascending by one.
        values: float32, (H, N); the bias that explains the old mechanism's scores best.
        weights: float32, (H, N), ≥ 0; total weight of the pairs at each distance. 0: never seen.
        content: the layer's sums by query, if it asked for them by `SchemeLayer.content_groups`.
    """

    distances: Tensor
    values: Tensor
    weights: Tensor
    content: ContentSums | None = None

    def centred(self) -> "Curve":
        """Return the curve with a weighted mean of 0 for each head; softmax sees no difference."""
        total = self.weights.sum(1, keepdim=True).clamp(min=TINY)
        return replace(self, values=self.values - (self.weights * self.values).sum(1, keepdim=True) / total)

    def smoothed(self) -> "Curve":
        """Return the curve averaged, by weight, over distances within a share of each other."""
        width = (SMOOTHING * self.distances.abs().float()).floor()
        near = (self.distances[:, None] - self.distances[None, :]).abs() <= width[:, None]
        kernel = near.to(self.values.dtype)
        total = (self.weights @ kernel.t()).clamp(min=TINY)
        return replace(self, values=((self.weights * self.values) @ kernel.t()) / total)

    def at(self, wanted: Tensor) -> Tensor:
        """Return the values (H, M) at distances (M,); those never seen take the nearest seen distance's."""
        seen = self.distances[(self.weights > 0).all(0)]
        nearest = (wanted[:, None] - seen[None, :]).abs().argmin(dim=1)
        return self.values[:, seen[nearest] - self.distances[0]]

    def mean_by_group(self, groups: Tensor, count: int) -> Tensor:
        """Return the weighted mean (H, count) of the values in each group; empty groups take the nearest full one's.

        Args:
            groups: the group of each distance, int64, (N,).
            count: number of groups.
        """
        index = groups.expand(self.values.shape[0], -1)
        zeros = self.values.new_zeros(self.values.shape[0], count)
        total = zeros.scatter_add(1, index, self.weights)
        mean = zeros.scatter_add(1, index, self.weights * self.values) / total.clamp(min=TINY)
        full = (total > 0).all(0).nonzero().squeeze(1)
        places = torch.arange(count, device=full.device)
        return mean[:, full[(places[:, None] - full[None, :]).abs().argmin(dim=1)]]

    def slopes(self, smallest: float = 1e-6) -> Tensor:
        """Return the slope m ≥ smallest, (H,), of the weighted least-squares line c − m·|Δ| through each head."""
        return fitted_slopes([self], smallest=smallest)


def pooled(curves: Sequence[Curve]) -> Curve:
    """Return the weighted mean of several layers' curves over the same distances, each centred first."""
    centred = [curve.centred() for curve in curves]
    total = torch.stack([curve.weights for curve in centred])
    values = (total * torch.stack([curve.values for curve in centred])).sum(0) / total.sum(0).clamp(min=TINY)
    return Curve(curves[0].distances, values, total.sum(0))


def fitted_slopes(curves: Sequence[Curve], penalty: Tensor | None = None, smallest: float = 1e-6) -> Tensor:
    """Return the slope m ≥ smallest, (H,), with which c − m·penalty(Δ) explains each head's curves best.

    Weighted least squares over all curves at once, with a constant c of its own for each curve. The mean of each
    curve's own slope would be another thing: slopes of rising curves would enter as the smallest one.

    Args:
        curves: of one or several layers, over the same distances.
        penalty: float32, (H, N) or (N,); infinite where a pair is hidden. None: |Δ|.
        smallest: slope of heads that would do better with one of 0 or below.
    """
    distances = curves[0].distances
    x = distances.abs().float() if penalty is None else penalty
    hidden = x.isinf()
    x = x.masked_fill(hidden, 0.0).expand_as(curves[0].values)
    covariance, variance = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    for curve in curves:
        weights = curve.weights.masked_fill(hidden, 0.0)
        shape = Curve(distances, x, weights).centred().values
        covariance += (weights * shape * Curve(distances, curve.values, weights).centred().values).sum(1)
        variance += (weights * shape.square()).sum(1)
    return (-covariance / variance.clamp(min=TINY)).clamp(min=smallest)

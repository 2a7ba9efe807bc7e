"""The result of calibration's measurement of one layer: a bias for each head and distance, and its weight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_posswap.schemes.content import ContentSums

SMOOTHING = 0.08
"""Half width of the smoothing window, as a share of the distance: wider at large distances, which have fewer pairs."""
TINY = 1e-12
"""Smallest sum of weights to divide by, so that a weighted mean without any weight is zero."""


@dataclass(frozen=True)
class Curve:
    """A bias by distance for the heads of one layer, known up to a constant per head.

    Attributes:
        distances: int64, (N,), ascending by one.
        values: float32, (H, N); the bias that fits the old mechanism's scores best.
        weights: float32, (H, N), ≥ 0; total weight of the pairs at each distance. 0: the distance did not occur.
        content: the layer's sums by query, if `SchemeLayer.content_groups` returned groups.
    """

    distances: Tensor
    values: Tensor
    weights: Tensor
    content: ContentSums | None = None

    def centred(self) -> "Curve":
        """Return the curve minus its weighted mean for each head; the result of softmax does not change."""
        total = self.weights.sum(1, keepdim=True).clamp(min=TINY)
        return replace(self, values=self.values - (self.weights * self.values).sum(1, keepdim=True) / total)

    def smoothed(self) -> "Curve":
        """Return the weighted moving average of the curve, over a window whose width grows with the distance."""
        width = (SMOOTHING * self.distances.abs().float()).floor()
        near = (self.distances[:, None] - self.distances[None, :]).abs() <= width[:, None]
        kernel = near.to(self.values.dtype)
        total = (self.weights @ kernel.t()).clamp(min=TINY)
        return replace(self, values=((self.weights * self.values) @ kernel.t()) / total)

    def at(self, wanted: Tensor) -> Tensor:
        """Return the values (H, M) at distances (M,); a distance without weight takes the nearest one with weight."""
        seen = self.distances[(self.weights > 0).all(0)]
        nearest = (wanted[:, None] - seen[None, :]).abs().argmin(dim=1)
        return self.values[:, seen[nearest] - self.distances[0]]

    def mean_by_group(self, groups: Tensor, count: int) -> Tensor:
        """Return the weighted mean (H, count) of the values in each group; an empty group takes the nearest other one.

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
    """Return the slope m ≥ smallest, (H,), with which c − m·penalty(Δ) fits each head's curves best.

    Solves one weighted least-squares problem over all curves, with a separate constant c for each curve. This differs
    from the mean of the curves' own slopes, in which the slope of a rising curve would be clamped to `smallest`.

    Args:
        curves: curves of one or several layers, over the same distances.
        penalty: float32, (H, N) or (N,); infinite where a pair is masked. None: |Δ|.
        smallest: the slope of heads whose best slope is smaller.
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

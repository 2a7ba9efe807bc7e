"""What calibration measures of one layer: each head's preference for each distance, and how much it rests on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMOOTHING = 0.08
"""Half width of the smoothing window, as a share of the distance: narrow near the query, wide where pairs are few."""


@dataclass(frozen=True)
class Curve:
    """A bias by distance for the heads of one layer, known up to a constant per head.

    Attributes:
        distances: int64, (N,), ascending by one.
        values: float32, (H, N); the bias that explains the old mechanism's scores best.
        weights: float32, (H, N), ≥ 0; total weight of the pairs at each distance. 0: never seen.
    """

    distances: Tensor
    values: Tensor
    weights: Tensor

    def smoothed(self) -> "Curve":
        """Return the curve averaged, by weight, over distances within a share of each other."""
        width = (SMOOTHING * self.distances.abs().float()).floor()
        near = (self.distances[:, None] - self.distances[None, :]).abs() <= width[:, None]
        kernel = near.to(self.values.dtype)
        total = (self.weights @ kernel.t()).clamp(min=1e-12)
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
        mean = zeros.scatter_add(1, index, self.weights * self.values) / total.clamp(min=1e-12)
        full = (total > 0).all(0).nonzero().squeeze(1)
        places = torch.arange(count, device=full.device)
        return mean[:, full[(places[:, None] - full[None, :]).abs().argmin(dim=1)]]

    def slopes(self, smallest: float = 1e-6) -> Tensor:
        """Return the slope m ≥ smallest, (H,), of the weighted least-squares line c − m·|Δ| through each head."""
        x = self.distances.abs().float()
        total = self.weights.sum(1, keepdim=True)
        x_centred = x - (self.weights * x).sum(1, keepdim=True) / total
        y_centred = self.values - (self.weights * self.values).sum(1, keepdim=True) / total
        covariance = (self.weights * x_centred * y_centred).sum(1)
        return (-covariance / (self.weights * x_centred.square()).sum(1)).clamp(min=smallest)

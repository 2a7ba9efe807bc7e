"""Calibration of schemes whose bias depends on the query: sums by query, and least squares for vectors."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

STEPS = 100
"""Maximum steps of conjugate gradients. With the preconditioner, ten to twenty reach the tolerance."""
TOLERANCE = 1e-6
"""Conjugate gradients stop when the preconditioned residual has shrunk by this factor."""


@dataclass(frozen=True)
class ContentSums:
    """Differences of the stock and the swapped scores of one layer, summed for each query over groups of distances.

    These sums are sufficient to fit a bias q·a_g by least squares, with a vector a_g for each group g and a free
    constant for each query: minimise Σ w·(difference − constant − q·a_g)² over all pairs of query and key.

    Attributes:
        groups: numbers of the G groups that have pairs, int64, (G,), ascending.
        query: queries times `scaling`, as the bias gets them: float32, (H, n, D).
        weights: total weight of a query's pairs in each group, float32, (H, n, G).
        differences: sum of weight times difference over the same pairs, float32, (H, n, G).
        scaling: the factor on q·k; `query` contains it.
    """

    groups: Tensor
    query: Tensor
    weights: Tensor
    differences: Tensor
    scaling: float

    def over_heads(self) -> "ContentSums":
        """Return the sums with the queries of all heads as queries of one head, for vectors that heads share."""
        parts = {name: getattr(self, name).flatten(0, 1)[None] for name in ("query", "weights", "differences")}
        return replace(self, **parts)

    def nearest(self, count: int) -> Tensor:
        """Return for each number 0…count − 1 the index of the group whose number is nearest, int64, (count,)."""
        numbers = torch.arange(count, device=self.groups.device)
        return (numbers[:, None] - self.groups[None, :]).abs().argmin(dim=1)

    def coefficients(self, ridge: float, basis: Tensor | None = None) -> Tensor:
        """Return the X for which the vectors basis·X fit the differences best: float64, on the CPU, (H, m, D).

        The method is conjugate gradients on the least-squares problem with each query's constant eliminated and a
        penalty λ·|X|². The preconditioner is the normal matrix under the assumption that queries and weights are
        independent; it is then a Kronecker product. So a few steps suffice, and no matrix of (m·D)² entries is stored.

        Args:
            ridge: λ > 0, relative to a group's mean weight times the mean square of a query's entries.
            basis: basis of the vectors, float64, (G, m). None: the identity, with m = G.
        """
        query, weights, differences = (x.cpu().double() for x in (self.query, self.weights, self.differences))
        basis = torch.eye(len(self.groups), dtype=torch.float64) if basis is None else basis.cpu()
        total = weights.sum(-1, keepdim=True)
        share = weights / total
        between = basis.t() @ (torch.diag_embed(weights.sum(1)) - share.transpose(1, 2) @ weights) @ basis
        among = (query * total).transpose(1, 2) @ query / total.sum(1, keepdim=True)
        penalty = ridge * weights.sum((1, 2)) / len(self.groups) * among.diagonal(dim1=1, dim2=2).mean(1)
        penalty = penalty[:, None, None]

        def normal(x: Tensor) -> Tensor:
            bias = query @ (basis @ x).transpose(1, 2)
            centred = weights * (bias - (share * bias).sum(-1, keepdim=True))
            return basis.t() @ (centred.transpose(1, 2) @ query) + penalty * x

        centred = differences - share * differences.sum(-1, keepdim=True)
        left, right = torch.linalg.eigh(between), torch.linalg.eigh(among)
        spectrum = left[0].clamp(min=0)[:, :, None] * right[0].clamp(min=0)[:, None, :] + penalty

        def precondition(x: Tensor) -> Tensor:
            return left[1] @ ((left[1].transpose(1, 2) @ x @ right[1]) / spectrum) @ right[1].transpose(1, 2)

        return conjugate_gradients(normal, precondition, basis.t() @ (centred.transpose(1, 2) @ query))


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], wanted: Tensor
) -> Tensor:
    """Solve apply(x) = wanted for symmetric positive definite operators, one for each index of the first dimension.

    Args:
        apply: the operators, on (H, m, D).
        precondition: approximate inverses of the operators, symmetric and positive definite.
        wanted: right-hand sides, float64, (H, m, D).
    """
    tiny = torch.finfo(wanted.dtype).tiny
    solution, residual = torch.zeros_like(wanted), wanted
    direction = preconditioned = precondition(residual)
    size = first = _inner(residual, preconditioned)
    for _ in range(STEPS):
        if (size <= TOLERANCE**2 * first).all():
            break
        applied = apply(direction)
        step = size / _inner(direction, applied).clamp(min=tiny)
        solution, residual = solution + step * direction, residual - step * applied
        preconditioned = precondition(residual)
        size, before = _inner(residual, preconditioned), size
        direction = preconditioned + size / before.clamp(min=tiny) * direction
    return solution


def _inner(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((1, 2), keepdim=True)


def log_groups(distances: Tensor, exact: int = 32, per_octave: int = 8) -> Tensor:
    """Return a group number for each distance: one group per distance up to `exact`, then `per_octave` per doubling.

    The numbers are negative for Δ < 0.

    Args:
        distances: relative distances, int64, (N,).
        exact: largest |Δ| with a group of its own.
        per_octave: number of groups between one |Δ| and 2·|Δ|.
    """
    size = distances.abs()
    far = exact + 1 + (torch.log2(size.clamp(min=exact + 1).double() / (exact + 1)) * per_octave).long()
    return distances.sign() * torch.where(size <= exact, size, far)

"""Fits a sum of bell curves to the curve of each head: a greedy search on a grid, then Levenberg–Marquardt."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hf_posswap.schemes.content import log_groups
from hf_posswap.schemes.curves import TINY, Curve

NARROWEST = 0.5
"""Smallest width σ of a bell curve a·exp(−x²/2σ²), in tokens. This bell curve already covers only one distance."""
WIDTHS_PER_OCTAVE = 2
PLACES_PER_OCTAVE = 4
EXACT_PLACES = 8
RIDGE = 1e-4
"""Penalty on squared heights, relative to the total weight. Without it, the heights of two similar bell curves grow
with opposite signs."""
STEPS = 60
DAMPING, EASED, STIFFENED = 1e-2, 1 / 3, 4.0
"""Levenberg–Marquardt: the initial damping, and its factors after a step that lowers the error and after one that does
not."""


class Shape(NamedTuple):
    """Bell curves a·exp(−e^β·(x − c)²): float64, (H, S) each."""

    height: Tensor
    log_sharpness: Tensor
    place: Tensor


class Problem(NamedTuple):
    """Weighted least squares of all heads, with a free constant for each head.

    Attributes:
        x: values of j − i, float64, (N,).
        values: values to fit, minus each head's weighted mean, float64, (H, N).
        weights: weights of the values, float64, (H, N); the sum of each head is 1.
    """

    x: Tensor
    values: Tensor
    weights: Tensor

    def centred(self, columns: Tensor) -> Tensor:
        """Return columns (H|1, …, N) minus each head's weighted mean, which eliminates the constant."""
        weights = self.weights.view(-1, *[1] * (columns.dim() - 2), self.weights.shape[1])
        return columns - (weights * columns).sum(-1, keepdim=True)


def fitted_kernels(curve: Curve, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return heights a, sharpnesses b and places c of `count` bell curves per head, float32, (H, count).

    They minimise Σ w·(value − constant − Σ_s a_s·exp(−b_s·(j − i − c_s)²))² with a free constant for each head. First
    the bell curves are chosen one by one from a grid of places and widths, then all of them are refined together.

    Args:
        curve: a bias by distance.
        count: number of bell curves S.
    """
    seen = (curve.weights > 0).any(0)
    weights = curve.weights[:, seen].cpu().double()
    weights = weights / weights.sum(1, keepdim=True).clamp(min=TINY)
    problem = Problem(-curve.distances[seen].cpu().double(), curve.values[:, seen].cpu().double(), weights)
    problem = problem._replace(values=problem.centred(problem.values))
    found = _refined(problem, _chosen(problem, count))
    device = curve.values.device
    height, sharpness, place = (x.float().to(device) for x in (found.height, found.log_sharpness.exp(), found.place))
    return height, sharpness, place


def _limits(problem: Problem) -> tuple[float, float, float]:
    """Return the largest |c|, and the smallest and the largest ln b."""
    farthest = max(1.0, float(problem.x.abs().max()))
    return farthest, -math.log(2 * farthest**2), -math.log(2 * NARROWEST**2)


def _chosen(problem: Problem, count: int) -> Shape:
    """Choose bell curves from a grid one by one; each choice reduces the error most, given the earlier choices."""
    _, flattest, sharpest = _limits(problem)
    every = problem.x.long().sort().values
    groups = log_groups(every, EXACT_PLACES, PLACES_PER_OCTAVE)
    places = every[torch.cat((torch.ones(1, dtype=torch.bool), groups[1:] != groups[:-1]))].double()
    octaves = (sharpest - flattest) / (2 * math.log(2))  # of the width, which is b^(−1/2)
    widths = WIDTHS_PER_OCTAVE * math.ceil(octaves) + 1
    log_sharpness = torch.linspace(sharpest, flattest, widths, dtype=torch.float64)
    place, log_sharpness = (x.flatten() for x in torch.meshgrid(places, log_sharpness, indexing="ij"))
    grid = torch.exp(-log_sharpness.exp()[:, None] * (problem.x - place[:, None]).square())
    heads = range(len(problem.values))
    picks = torch.tensor([_pursue(grid, problem.values[h], problem.weights[h], count) for h in heads])
    shape = Shape(torch.zeros(picks.shape, dtype=torch.float64), log_sharpness[picks], place[picks])
    return _with_best_heights(problem, shape)


def _pursue(grid: Tensor, values: Tensor, weights: Tensor, count: int) -> list[int]:
    """Return the rows of the grid (G, N) that orthogonal matching pursuit picks for one head's values (N,)."""
    root = weights.sqrt()
    columns = (grid - (grid @ weights)[:, None]) * root
    left = values * root
    sizes = columns.square().sum(1).clamp(min=TINY)
    least = 1e-6 * sizes.max()
    remaining = sizes.clone()
    basis: list[Tensor] = []
    picks: list[int] = []
    for _ in range(count):
        gain = (columns @ left).square() / remaining
        gain[remaining < least] = -1.0  # columns in the span of the chosen columns
        pick = int(gain.argmax())
        direction = columns[pick].clone()
        for vector in basis:
            direction -= (vector @ direction) * vector
        direction /= direction.norm().clamp(min=TINY)
        basis.append(direction)
        left = left - (direction @ left) * direction
        remaining = (remaining - (columns @ direction).square()).clamp(min=TINY)
        picks.append(pick)
    return picks


def _bells(problem: Problem, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return x − c and the bell curves of height 1, (H, S, N)."""
    away = problem.x - shape.place[..., None]
    return away, torch.exp(-shape.log_sharpness.exp()[..., None] * away.square())


def _with_best_heights(problem: Problem, shape: Shape) -> Shape:
    """Return the shape with the heights that fit best: the solution of a linear least-squares problem."""
    columns = problem.centred(_bells(problem, shape)[1])
    weighted = columns * problem.weights[:, None]
    normal = weighted @ columns.mT + RIDGE * torch.eye(columns.shape[1], dtype=columns.dtype)
    return shape._replace(height=torch.linalg.solve(normal, (weighted @ problem.values[..., None])).squeeze(-1))


def _error(problem: Problem, shape: Shape) -> Tensor:
    """Return each head's penalised error, (H,)."""
    sums = (shape.height[..., None] * _bells(problem, shape)[1]).sum(1)
    left = problem.values - problem.centred(sums)
    return (problem.weights * left.square()).sum(1) + RIDGE * shape.height.square().sum(1)


def _refined(problem: Problem, shape: Shape) -> Shape:
    """Return the shape after damped Gauss–Newton steps, each on all heights, sharpnesses and places of a head."""
    farthest, flattest, sharpest = _limits(problem)
    count = shape.height.shape[1]
    damping = torch.full((len(problem.values),), DAMPING, dtype=torch.float64)
    error = _error(problem, shape)
    penalty = torch.zeros(3 * count, dtype=torch.float64)
    penalty[:count] = RIDGE
    for _ in range(STEPS):
        away, bells = _bells(problem, shape)
        slope = shape.height[..., None] * shape.log_sharpness.exp()[..., None] * bells
        columns = problem.centred(torch.cat((bells, -slope * away.square(), 2 * slope * away), dim=1))
        weighted = columns * problem.weights[:, None]
        left = problem.values - problem.centred((shape.height[..., None] * bells).sum(1))
        normal = weighted @ columns.mT + torch.diag(penalty)
        gradient = (weighted @ left[..., None]).squeeze(-1)
        gradient[:, :count] -= RIDGE * shape.height
        diagonal = normal.diagonal(dim1=1, dim2=2)
        damped = normal + torch.diag_embed(damping[:, None] * diagonal + TINY)
        step = torch.linalg.solve(damped, gradient[..., None]).squeeze(-1)
        height, log_sharpness, place = step.split(count, dim=1)
        tried = Shape(
            shape.height + height,
            (shape.log_sharpness + log_sharpness).clamp(flattest, sharpest),
            (shape.place + place).clamp(-farthest, farthest),
        )
        now = _error(problem, tried)
        helps = now < error
        error = torch.where(helps, now, error)
        shape = Shape(*(torch.where(helps[:, None], new, old) for new, old in zip(tried, shape, strict=True)))
        damping = torch.where(helps, damping * EASED, damping * STIFFENED).clamp(1e-9, 1e9)
    return shape

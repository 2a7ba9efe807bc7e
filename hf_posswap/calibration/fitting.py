"""Fits a bias by distance, and sums by query, to the difference of a layer's stock and swapped scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_posswap.calibration.streams import Projections, compared_queries
from hf_posswap.errors import PosSwapError
from hf_posswap.schemes.content import ContentSums
from hf_posswap.schemes.curves import Curve

TINY = 1e-12
"""Smallest sum of weights to divide by, so that a weighted mean without any weight is zero."""


class CalibrationError(PosSwapError):
    """A text that calibration cannot use, or an invalid setting."""


@dataclass(frozen=True)
class FitSettings:
    """Weights and iterations of calibration. The defaults gave the best results, see docs/calibration.md.

    The weight of a pair of query and key is the weighted sum of three terms, each of which sums to 1 over the keys of a
    query.

    Attributes:
        teacher: factor on the attention weights of the stock model.
        student: factor on the attention weights of the swapped model, with the curve found so far.
        uniform: factor on equal weights for all keys.
        rounds: rounds of alternating least squares between row constants and the curve, at least 1.
        follow: fit each layer on the output of the fitted layers below it. False: on the stock model's hidden states.

    Raises (on construction):
        CalibrationError: a negative factor, no factor above 0, or no round.
    """

    teacher: float = 1 / 3
    student: float = 1 / 3
    uniform: float = 1 / 3
    rounds: int = 3
    follow: bool = True

    def __post_init__(self) -> None:
        parts = (self.teacher, self.student, self.uniform)
        if min(parts) < 0 or max(parts) == 0:
            raise CalibrationError(
                f"the parts (teacher, student, uniform) of a pair's weight are {parts}; none may be negative, and one "
                "must be greater than 0. Leave them out for a third each."
            )
        if self.rounds < 1:
            raise CalibrationError(f"rounds is {self.rounds}; it must be 1 or more. Leave it out for 3.")


@dataclass(frozen=True)
class Pairs:
    """The compared pairs of query and key of one text.

    Attributes:
        distance: int64, (n, L).
        difference: stock − swapped scores, (H, n, L).
        bias: the bias of the curve found so far, (H, n, L).
        weight: (H, n, L); 0 for masked pairs.
    """

    distance: Tensor
    difference: Tensor
    bias: Tensor
    weight: Tensor


def fit_curve(samples: Sequence[Projections], causal: bool, settings: FitSettings) -> tuple[Curve, Tensor]:
    """Return the bias by distance that fits stock − swapped scores best, and its share of explained variance per head.

    Args:
        samples: a layer's queries and keys of each batch.
        causal: whether keys after the query are masked.
        settings: weights of the pairs, and rounds.
    """
    length = max(sample.length for sample in samples)
    heads, device = samples[0].stock_query.shape[1], samples[0].stock_query.device
    curve = _Sums.zeros(heads, length, device).curve()
    for _ in range(settings.rounds):
        total = _Sums.zeros(heads, length, device)
        for sample, text in _texts(samples):
            total.add(_compare(sample, text, curve, causal, settings))
        curve = total.curve()
    return curve, total.explained()


def mismatch(samples: Sequence[Projections], causal: bool, settings: FitSettings) -> Tensor:
    """Return the weighted variance, within rows, of stock − swapped scores in each head, (H,).

    Args:
        samples: a layer's queries and keys of each batch.
        causal: whether keys after the query are masked.
        settings: weights of the pairs.
    """
    length = max(sample.length for sample in samples)
    total = _Sums.zeros(samples[0].stock_query.shape[1], length, samples[0].stock_query.device)
    for sample, text in _texts(samples):
        total.add(pairs_of(sample, text, causal, settings))
    return total.variance


def pairs_of(sample: Projections, text: int, causal: bool, settings: FitSettings) -> Pairs:
    """Return the compared pairs of one text, weighted without a curve."""
    none = _Sums.zeros(sample.stock_query.shape[1], sample.length, sample.stock_query.device).curve()
    return _compare(sample, text, none, causal, settings)


def sum_by_query(
    samples: Sequence[Projections], curve: Curve, groups: Tensor, causal: bool, settings: FitSettings
) -> ContentSums:
    """Return each compared query's sums over groups of distances, for a layer whose bias depends on the query.

    Args:
        samples: a layer's queries and keys of each batch.
        curve: the fitted curve; the swapped model's part of the weights is computed with it.
        groups: the group of each of the curve's distances, int64, (N,).
        causal: whether keys after the query are masked.
        settings: weights of the pairs.
    """
    seen = (curve.weights > 0).all(0)
    names = groups[seen].unique()
    places = torch.searchsorted(names, groups).clamp(max=len(names) - 1)  # a group without pairs has weight 0
    queries, weights, differences = [], [], []
    for sample, text in _texts(samples):
        queries.append(sample.scaled_queries(text))
        pairs = _compare(sample, text, curve, causal, settings)
        place = places[pairs.distance - curve.distances[0]].expand_as(pairs.weight)
        zeros = pairs.weight.new_zeros(*pairs.weight.shape[:2], len(names))
        weights.append(zeros.scatter_add(-1, place, pairs.weight))
        differences.append(zeros.scatter_add(-1, place, pairs.weight * pairs.difference))
        del pairs, place  # free the memory before the next text's are computed
    query, weight, difference = (torch.cat(parts, dim=1) for parts in (queries, weights, differences))
    return ContentSums(names, query, weight, difference, samples[0].scaling)


def _texts(samples: Sequence[Projections]) -> Iterator[tuple[Projections, int]]:
    """Yield each text as its batch and its index there. One text at a time bounds the memory for scores."""
    for sample in samples:
        for text in range(len(sample)):
            yield sample, text


def _compare(sample: Projections, text: int, curve: Curve, causal: bool, settings: FitSettings) -> Pairs:
    """Return the pairs of one text, weighted with the curve found so far."""
    keys = torch.arange(sample.length, device=curve.values.device)
    distance = compared_queries(sample.length, keys.device)[:, None] - keys[None, :]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if sample.window is not None:
        seen = seen & (distance.abs() < sample.window)
    stock, swapped = sample.scores(text)
    bias = curve.values[:, distance - curve.distances[0]]
    return Pairs(distance, stock - swapped, bias, _weigh(stock, swapped + bias, seen, settings))


def _weigh(stock: Tensor, swapped: Tensor, seen: Tensor, settings: FitSettings) -> Tensor:
    """Return each pair's weight: the weighted sum of stock attention, swapped attention and uniform weights."""
    minimum = torch.finfo(torch.float32).min
    weight = (settings.uniform * seen / seen.sum(-1, keepdim=True)).expand_as(stock)
    for part, scores in ((settings.teacher, stock), (settings.student, swapped)):
        if part:
            weight = weight + part * scores.masked_fill(~seen, minimum).softmax(-1)
    return weight


@dataclass
class _Sums:
    """The sums of one round over all texts: by distance Δ = 1 − L…L − 1, (H, 2L − 1), or by head, (H,)."""

    weights: Tensor
    weighted: Tensor
    residual: Tensor
    variance: Tensor

    @classmethod
    def zeros(cls, heads: int, length: int, device: torch.device) -> "_Sums":
        """Return sums of zero for texts of up to `length` tokens."""
        shapes = ((heads, 2 * length - 1), (heads, 2 * length - 1), (heads,), (heads,))
        return cls(*(torch.zeros(shape, device=device) for shape in shapes))

    def add(self, pairs: Pairs) -> None:
        """Add one text: the constant of a row is the weighted mean of its differences minus the bias."""
        weight, row = pairs.weight, pairs.weight.sum(-1, keepdim=True)
        constant = (weight * (pairs.difference - pairs.bias)).sum(-1, keepdim=True) / row
        target = pairs.difference - constant
        place = (pairs.distance + self.weights.shape[1] // 2).flatten()
        self.weights.index_add_(1, place, weight.flatten(1))
        self.weighted.index_add_(1, place, (weight * target).flatten(1))
        self.residual += (weight * (target - pairs.bias).square()).sum((1, 2))
        centred = pairs.difference - (weight * pairs.difference).sum(-1, keepdim=True) / row
        self.variance += (weight * centred.square()).sum((1, 2))

    def curve(self) -> Curve:
        """Return the weighted means by distance."""
        distances = torch.arange(self.weights.shape[1], device=self.weights.device) - self.weights.shape[1] // 2
        return Curve(distances, self.weighted / self.weights.clamp(min=TINY), self.weights)

    def explained(self) -> Tensor:
        """Return the share of the variance that the round's bias explained, (H,)."""
        return 1 - self.residual / self.variance.clamp(min=TINY)

"""A kind of bias for schemes that compute each score in several ways and choose one by the positions of the pair."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions


class Reach(NamedTuple):
    """Limits of the distance Δ = i − j of the pairs that may have a score; None is no limit."""

    least: int | None = None
    most: int | None = None


class Alternative(NamedTuple):
    """Queries and keys in another form, whose product is the score of some pairs.

    Attributes:
        query: (B, H, Lq, D).
        key: (B, Hkv, Lk, D).
        reach: distances of the pairs that may have this score.
    """

    query: Tensor
    key: Tensor
    reach: Reach


@dataclass(frozen=True)
class ChosenScores(Bias):
    """Scores of which each is q·k as given, or the product of an alternative form of q and k.

    An alternative is computed only for keys at distances that it may be chosen at, where these follow from the indices.

    Attributes:
        query: queries as given, (B, H, Lq, D).
        key: keys as given, (B, Hkv, Lk, D).
        alternatives: the other forms.
        choice: returns, for the queries start…stop−1, 0 where the given score stays and n where the n-th alternative
            replaces it: int64, (B|1, stop − start, Lk).
        scaling: factor on q·k.
        offset: index of the first query among the keys if the distance of every visible pair is the difference of its
            indices; None: unknown.
    """

    reads_scores = True

    query: Tensor
    key: Tensor
    alternatives: tuple[Alternative, ...]
    choice: Callable[[int, int], Tensor]
    scaling: float
    offset: int | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether no pair can have the score of an alternative, as in a short text."""
        spans = [self._span(each, 0, self.query.shape[2]) for each in self.alternatives]
        return all(first >= last for first, last in spans)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: the chosen scores minus those given, (B, H, stop − start, Lk)."""
        given = self._scores(self.query, self.key, start, stop)
        return self.replaced(given, start, stop) - given

    def replaced(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """See `Bias.replaced`."""
        choice = self.choice(start, stop)[:, None]
        for number, alternative in enumerate(self.alternatives, start=1):
            first, last = self._span(alternative, start, stop)
            if first >= last:
                continue
            other = self._scores(alternative.query, alternative.key[:, :, first:last], start, stop)
            span = slice(first, last)
            mixed = torch.where(choice[..., span] == number, other.to(scores.dtype), scores[..., span])
            if last - first < self.key.shape[2]:
                mixed = torch.cat((scores[..., :first], mixed, scores[..., last:]), dim=-1)
            scores = mixed
        return scores

    def added(self, scores: Tensor, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """See `Bias.added`: nothing is added, because `replaced` has chosen."""
        return scores

    def _span(self, alternative: Alternative, start: int, stop: int) -> tuple[int, int]:
        """Return (first, last + 1) of the keys to which the queries start…stop−1 may have an alternative's score."""
        length = self.key.shape[2]
        if self.offset is None:
            return 0, length
        least, most = alternative.reach
        first = 0 if most is None else max(0, self.offset + start - most)
        return first, length if least is None else min(length, self.offset + stop - least)

    def _scores(self, query: Tensor, key: Tensor, start: int, stop: int) -> Tensor:
        """Return scaled products of the queries start…stop−1 with keys, float32 or wider, (B, H, stop − start, Lk).

        Query heads that share a key head become the queries of that head, so that keys are not repeated.
        """
        exact = torch.promote_types(query.dtype, torch.float32)
        query, key = query[:, :, start:stop].to(exact) * self.scaling, key.to(exact)
        batch, heads, length, dim = query.shape
        products = query.reshape(batch, key.shape[1], -1, dim) @ key.transpose(-1, -2)
        return products.view(batch, heads, length, -1)


def index_offset(positions: Positions) -> int | None:
    """Return `ChosenScores.offset` for positions; None in a traced graph, which is for all lengths."""
    plain = positions.by_index and isinstance(positions.offset, int) and not torch.compiler.is_compiling()
    return positions.offset if plain else None  # type: ignore[return-value]  # it is an int if `plain`

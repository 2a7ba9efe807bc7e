"""Kinds of bias that are computed from the scores, so that attention writes the scores out, in blocks of queries."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_posswap.common.biases import Bias, at_share


@dataclass(frozen=True)
class Pairs:
    """The pairs of query and key of one attention call, for reading a bias outside attention, as pictures do.

    Attributes:
        query: queries (B, H, Lq, D).
        key: all keys (B, Hkv, Lk, D).
        scaling: factor on q·k.
        offset: index of the first query among the keys, see `Positions.offset`.
        causal: whether attention is causal.
    """

    query: Tensor
    key: Tensor
    scaling: float
    offset: int | Tensor
    causal: bool

    def queries(self, start: int, stop: int) -> Tensor:
        """Return the scaled queries start…stop−1 in float32, (B, H, stop − start, D)."""
        return self.query[:, :, start:stop].float() * self.scaling

    def scores(self, start: int, stop: int) -> Tensor:
        """Return the scaled scores of the queries start…stop−1, float32, (B, H, stop − start, Lk)."""
        key = self.key.float().repeat_interleave(self.query.shape[1] // self.key.shape[1], dim=1)
        return self.queries(start, stop) @ key.transpose(-1, -2)

    def visible(self, start: int, stop: int) -> Tensor | None:
        """Return which keys the queries start…stop−1 see without a mask: boolean, (stop − start, Lk); None: all."""
        if not self.causal:
            return None
        index = torch.arange(start, stop, device=self.query.device) + self.offset
        return torch.arange(self.key.shape[2], device=self.query.device) <= index[:, None]


@dataclass(frozen=True, kw_only=True)
class ScoreBias(Bias):
    """A bias that is computed from the scores.

    Attributes:
        pairs: the call's queries and keys.
        share: factor on the bias, 0…1 (0-dim); None: 1.
    """

    reads_scores = True

    pairs: Pairs
    share: Tensor | None = None

    @abstractmethod
    def summand(self, scores: Tensor, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """Return what the bias adds at full strength; arguments are those of `Bias.added`."""

    def added(self, scores: Tensor, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """See `Bias.added`."""
        summand = self.summand(scores, start, stop, visible)
        return scores + (summand if self.share is None else at_share(summand, self.share))

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: what the bias adds without a mask and a softcap."""
        summand = self.summand(self.pairs.scores(start, stop), start, stop, self.pairs.visible(start, stop))
        return summand if self.share is None else at_share(summand, self.share)

    def scaled(self, share: Tensor) -> "ScoreBias":
        """See `Bias.scaled`."""
        return replace(self, share=share)


@dataclass(frozen=True, kw_only=True)
class CountedBias(ScoreBias):
    """The product of each query with a vector at a counted position (CoPE).

    The position p of a key is the sum of the gates σ(score) of the visible keys from that key on, up to the query. The
    products with the vectors at the two whole numbers next to p are interpolated.

    Attributes:
        table: float32, (P, D), P ≥ 2; positions above P − 1 count as P − 1.
    """

    table: Tensor

    def summand(self, scores: Tensor, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """See `ScoreBias.summand`."""
        gates = scores.sigmoid()
        if visible is not None:
            gates = gates.masked_fill(~visible, 0.0)
        count = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=self.table.shape[0] - 1)
        below = count.detach().long().clamp(max=self.table.shape[0] - 2)
        products = self.pairs.queries(start, stop).to(scores.dtype) @ self.table.t().to(scores.dtype)
        steps = products.diff(dim=-1).gather(-1, below)
        return products.gather(-1, below) + (count - below) * steps

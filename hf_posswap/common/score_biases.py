"""Kinds of bias that are computed from the scores, so that attention writes the scores out, in blocks of queries."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.common.biases import Bias, at_share


@dataclass(frozen=True)
class ScoredPairs:
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

    pairs: ScoredPairs
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


@dataclass(frozen=True, kw_only=True)
class TransformedBias(ScoreBias):
    """Another bias b, and a network that reads the scores s and b of all heads for each pair: b + W₂·φ(W₁·[s; b] + c).

    φ is torch's leaky ReLU. For pairs that a mask or the bias hides, the network reads zeros: what is there instead is
    arbitrary, and may be infinite.

    Attributes:
        under: b.
        hidden_weight: W₁, float32, (W, 2H).
        hidden_bias: c, float32, (W,).
        output_weight: W₂, float32, (H, W).
    """

    under: Bias
    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor

    def summand(self, scores: Tensor, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """See `ScoreBias.summand`."""
        under = self.under.rows(start, stop).to(scores.dtype).expand(*scores.shape[:2], -1, -1)
        read = under.isfinite() if visible is None else under.isfinite() & visible
        scores, known = (torch.where(read, x, 0.0) for x in (scores, under))
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return under + self._network(scores, known)
        width, heads = self.hidden_weight.shape[0], scores.shape[1]
        step = max(1, (stop - start) * heads // (width + 2 * heads))  # the network then holds no more than the scores
        parts = [self._network(*pair) for pair in zip(scores.split(step, 2), known.split(step, 2), strict=True)]
        return under + torch.cat(parts, dim=2)

    def _network(self, scores: Tensor, under: Tensor) -> Tensor:
        """Return W₂·φ(W₁·[s; b] + c) for scores and a bias (B, H, n, Lk)."""
        inputs = torch.cat((scores, under), dim=1).flatten(2)
        constant, first, last = (x.to(scores.dtype) for x in (self.hidden_bias, self.hidden_weight, self.output_weight))
        hidden = torch.baddbmm(constant[None, :, None], first.expand(len(inputs), -1, -1), inputs)
        return (last @ F.leaky_relu(hidden)).view_as(scores)

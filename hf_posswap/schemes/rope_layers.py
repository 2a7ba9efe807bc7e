"""The part of RoPE in one attention layer: turns queries and keys, by the angles of all heads or by a head's own."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_posswap.common.positions import Positions
from hf_posswap.schemes.layer import SchemeLayer

UNRANKED = -1
"""The rank of every pair of a layer that has not chosen its pairs. Until then all of them turn."""


class Rotation(NamedTuple):
    """cos and sin of the angle of each pair of dimensions, float32, (B|1, 1|H, L, r/2); r dimensions rotate."""

    cos: Tensor
    sin: Tensor


class Rotations(NamedTuple):
    """The rotation of the queries, and of all keys if they are cached unrotated.

    Attributes:
        query: rotation of the queries and of the new keys.
        key: rotation of all keys, if they are cached unrotated; otherwise None.
        step: for a text that is read token by token and heads that rotate whole, by halves: the query's rotation as
            (cos, cos) and (−sin, sin), (B|1, 1, 1, D) each, for `rotate_step`; otherwise None.
        share: the share of the angles in a ramp, 0…1, 0-dim; None without a ramp.
    """

    query: Rotation
    key: Rotation | None
    step: Rotation | None = None
    share: Tensor | None = None


def rotate(x: Tensor, rotation: Rotation, interleaved: bool) -> Tensor:
    """Return x (B, H, L, D) with its first r dimensions rotated, computed in float32 and returned in x's dtype.

    This is equation 34 of the paper.

    Args:
        x: queries or keys.
        rotation: cos and sin for the positions of x.
        interleaved: whether pairs are neighbouring dimensions; otherwise a pair is dimensions n and n + r/2.
    """
    cos, sin = rotation
    half = cos.shape[-1]
    turning, rest = x[..., : 2 * half], x[..., 2 * half :]
    # One half after the other, so that only a half is in memory in float32 at a time.
    places = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    left, right = (turning[..., place].float() for place in places)
    turned = [(left * cos - right * sin).to(x.dtype), (right * cos + left * sin).to(x.dtype)]
    if interleaved:
        turned = [torch.stack(turned, dim=-1).flatten(-2)]
    return torch.cat((*turned, rest), dim=-1) if rest.shape[-1] or not interleaved else turned[0]


def rotate_step(x: Tensor, step: Rotation) -> Tensor:
    """Return what `rotate` returns, bit for bit, with a third of the operations; all of x is in memory in float32.

    Args:
        x: query or key of one token, (B, H, 1, D).
        step: see `Rotations.step`.
    """
    wide = x.float()
    return (wide * step.cos + wide.roll(wide.shape[-1] // 2, -1) * step.sin).to(x.dtype)


class RopeLayer(SchemeLayer):
    """Rotates q and k of one layer."""

    scales_in_prepare = True

    def __init__(self, interleaved: bool) -> None:
        super().__init__()
        self.interleaved = interleaved

    def own(self, rotation: Rotation, heads: int, share: Tensor | None) -> Rotation:
        """Return the rotation of this layer's queries or keys. By default all layers and heads have the same.

        Args:
            rotation: the rotation that all layers share.
            heads: number of heads of the queries or keys.
            share: see `Rotations.share`.
        """
        return rotation

    def transform_query(self, q: Tensor, positions: Positions, prepared: Rotations) -> Tensor:
        """Rotate q, unless keys are cached unrotated."""
        if prepared.step is not None:
            return rotate_step(q, prepared.step)
        return q if prepared.key is not None else self._rotated(q, prepared.query, prepared)

    def transform_key(self, k: Tensor, positions: Positions, prepared: Rotations) -> Tensor:
        """Rotate the new keys, unless keys are cached unrotated."""
        return self.transform_query(k, positions, prepared)

    def transform_cached(
        self, q: Tensor, k: Tensor, positions: Positions, prepared: Rotations
    ) -> tuple[Tensor, Tensor]:
        """Rotate q and all keys after the cache, if keys are cached unrotated."""
        if prepared.key is None:
            return q, k
        return self._rotated(q, prepared.query, prepared), self._rotated(k, prepared.key, prepared)

    def _rotated(self, x: Tensor, rotation: Rotation, prepared: Rotations) -> Tensor:
        return rotate(x, self.own(rotation, x.shape[1], prepared.share), self.interleaved)


class ChosenPairsLayer(RopeLayer):
    """Rotates in each head the pairs that contribute most to the scores, see `Rope`; the others stand still.

    Heads that share keys turn the same pairs.

    Args:
        kept: number of pairs that turn in each head.
        key_heads: number of key heads.
        pairs: number of pairs of a head.
        factor: factor on cos and sin.

    Attributes:
        ranks: number of pairs of the head that contribute more than a pair, int32 (Hkv, pairs); `UNRANKED` before
            calibration. A buffer: it is saved with the model, and does not learn.
    """

    by_head = True
    awaits = "frequencies='chosen' keeps the pairs that contribute most to the scores, which were not measured yet"

    def __init__(self, kept: int, key_heads: int, pairs: int, factor: float) -> None:
        super().__init__(interleaved=False)
        self.kept = kept
        self.factor = factor
        self.ranks = nn.Buffer(torch.full((key_heads, pairs), UNRANKED, dtype=torch.int32))

    def own(self, rotation: Rotation, heads: int, share: Tensor | None) -> Rotation:
        """See `RopeLayer.own`: the angle of the pairs that stand still is 0."""
        turns = _for_heads(self.ranks[:, None] < self.kept, heads)
        still = self.factor if share is None else self.factor**share
        return Rotation(torch.where(turns, rotation.cos, still), torch.where(turns, rotation.sin, 0.0))

    def unfitted(self) -> Tensor:
        """See `SchemeLayer.unfitted`."""
        return (self.ranks == UNRANKED).any()

    def choose(self, stock: Sequence[tuple[Tensor, Tensor]]) -> bool:
        """See `SchemeLayer.choose`: rank the pairs by the product of the mean norms of queries and keys.

        The norm of a pair does not depend on whether the stock model has turned it. Products of query heads that share
        keys are summed.
        """
        query, key = (_mean_norms([pair[place] for pair in stock]) for place in (0, 1))
        contribution = query.view(len(key), -1, query.shape[-1]).sum(1) * key
        order = contribution.argsort(dim=-1, descending=True, stable=True)
        self.ranks.copy_(order.argsort(dim=-1))
        return True

    def state_in_words(self) -> str:
        """See `SchemeLayer.state_in_words`."""
        heads_turn = f"{self.kept} of {self.ranks.shape[1]} pairs of each head turn"
        if self.ranks.is_meta:
            return heads_turn
        return f"{heads_turn}, {'not chosen yet: calibrate' if self.unfitted() else 'chosen by calibration'}"


class SummedFrequenciesLayer(RopeLayer):
    """Rotates by cos and sin that are sums over the frequencies of all pairs that turn, see `Rope`.

    Args:
        interleaved: see `rotate`.
        turning: number of pairs that turn: the first ones.
        key_heads: number of key heads. Heads that share keys have the same sums.

    Attributes:
        cos_sums: summands' coefficients in the cosines of pair m, float (Hkv, turning, turning), [h, ω, m]. They start
            at 0, where each pair has one frequency.
        sin_sums: the same for the sines.
    """

    by_head = True

    def __init__(self, interleaved: bool, turning: int, key_heads: int) -> None:
        super().__init__(interleaved)
        self.turning = turning
        self.cos_sums = nn.Parameter(torch.zeros(key_heads, turning, turning))
        self.sin_sums = nn.Parameter(torch.zeros(key_heads, turning, turning))

    def own(self, rotation: Rotation, heads: int, share: Tensor | None) -> Rotation:
        """See `RopeLayer.own`: in a ramp the coefficients grow with the share, as the angles do."""
        cos, sin = (
            self._summed(table, weight.float() if share is None else weight.float() * share, heads)
            for table, weight in zip(rotation, (self.cos_sums, self.sin_sums), strict=True)
        )
        return Rotation(cos, sin)

    def _summed(self, table: Tensor, weight: Tensor, heads: int) -> Tensor:
        turning, still = table[..., : self.turning], table[..., self.turning :]
        summed = _for_heads(turning + turning @ weight, heads, dim=1)
        return torch.cat((summed, still.expand(*summed.shape[:-1], -1)), dim=-1)


def _for_heads(x: Tensor, heads: int, dim: int = 0) -> Tensor:
    """Repeat what each key head has for the heads of queries or keys."""
    return x if x.shape[dim] == heads else x.repeat_interleave(heads // x.shape[dim], dim=dim)


def _mean_norms(vectors: Sequence[Tensor]) -> Tensor:
    """Return the mean norm of each pair, a half apart, over texts and positions: of (B, H, L, D) each, (H, D/2)."""
    norms = [x.float().unflatten(-1, (2, -1)).norm(dim=-2) for x in vectors]
    return sum(x.sum((0, 2)) for x in norms) / sum(x.shape[0] * x.shape[2] for x in norms)

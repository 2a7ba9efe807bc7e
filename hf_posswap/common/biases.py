"""Bias kinds: what a scheme adds to the scaled scores, with the structure that makes it cheap.

A bias is never held as a H × Lq × Lk tensor when less will do. Every kind can produce the float32 rows of a block of
queries (`rows`), which any backend can use; the attention backends exploit the structure where they can.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor


class Bias(ABC):
    """A value added to the scaled score of each (head, query, key)."""

    proportional_to: ClassVar[str] = ""
    """The tensor field to which all rows are proportional, if there is one."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Bias of the queries start…stop−1: float32, broadcastable to (B, H, stop − start, Lk)."""

    def scaled(self, share: Tensor) -> "Bias":
        """Return this bias at a share 0…1 (0-dim) of its strength: of the same kind, or dense if no field scales it."""
        if not self.proportional_to:
            return DenseBias(lambda start, stop: _scaled(self.rows(start, stop), share))
        return replace(self, **{self.proportional_to: _scaled(getattr(self, self.proportional_to), share)})  # type: ignore[type-var]


def _scaled(values: Tensor, share: Tensor) -> Tensor:
    """Return share · values; −∞, which hides a key, becomes ln(1 − share): the key's weight shrinks to 1 − share."""
    return torch.where(values.isneginf(), torch.log1p(-share), values * share)


@dataclass(frozen=True)
class RelativeBias(Bias):
    """One value per head and relative distance: a Toeplitz matrix, stored as a vector per head.

    Attributes:
        values: float32, (H, Lq + Lk − 1); element n belongs to Δ = offset + n − (Lk − 1), see `Positions.distances`.
        query_length: Lq.
        key_length: Lk.
    """

    proportional_to = "values"

    values: Tensor
    query_length: int
    key_length: int
    _within: dict[tuple[int | None, int | None], Tensor] = field(init=False, repr=False, default_factory=dict)

    def flipped_rows(self, start: int, stop: int, reversed_values: Tensor | None = None) -> Tensor:
        """Rows of the queries stop−1, …, start (in that order) as a view of O(Lq + Lk) memory.

        With the queries in reverse the matrix is constant along its anti-diagonals (a Hankel matrix), which is a
        strided view of the reversed vector: element (r, j) lies at Lq − stop + r + j.

        Args:
            start: first query.
            stop: one past the last query.
            reversed_values: `values` flipped along its last dimension, if the caller has it already (any dtype).

        Returns:
            A view of (H, stop − start, Lk); rows overlap in memory, so it must not be written to.
        """
        source = self.values.flip(-1) if reversed_values is None else reversed_values
        shape = (source.shape[0], stop - start, self.key_length)
        strides = (source.stride(0), source.stride(1), source.stride(1))
        return source[:, self.query_length - stop :].as_strided(shape, strides)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (1, H, stop − start, Lk)."""
        return self.flipped_rows(start, stop).flip(1).unsqueeze(0)

    def within(self, least: int | None, most: int | None) -> Tensor:
        """Return the values, (H, Lq + Lk − 1), at −inf unless least ≤ i − j ≤ most for indices of query i and key j.

        None: no limit. Made once for all layers that share the bias.
        """
        if least is None and most is None:
            return self.values
        limits = (least, most)
        if limits not in self._within:
            difference = torch.arange(self.values.shape[-1], device=self.values.device) - (self.key_length - 1)
            hidden = torch.zeros_like(difference, dtype=torch.bool)
            if least is not None:
                hidden = hidden | (difference < least)
            if most is not None:
                hidden = hidden | (difference > most)
            self._within[limits] = self.values.masked_fill(hidden, float("-inf"))
        return self._within[limits]


@dataclass(frozen=True)
class LinearBias(Bias):
    """−m·Δ with one slope m per head, for causal attention.

    In a causal softmax −m·(i − j) and +m·j differ by a constant of the row, so this bias can ride in extra head
    channels of q and k (`attention.folding`) and any fused causal kernel runs it without a bias at all.

    Attributes:
        slopes: float32, (H,); positive slopes let the bias fall with distance.
        distances: int64, (Lq + Lk − 1,), see `Positions.distances`.
        query_length: Lq.
        key_length: Lk.
    """

    proportional_to = "slopes"

    slopes: Tensor
    distances: Tensor
    query_length: int
    key_length: int
    _kept: list[RelativeBias] = field(init=False, repr=False, default_factory=list)

    def as_relative(self) -> RelativeBias:
        """The same bias as a `RelativeBias`; made once for all layers that share the bias, unless slopes learn."""
        if torch.is_grad_enabled() and self.slopes.requires_grad:
            return self._relative()  # kept, it would leave a layer that is checkpointed
        if not self._kept:
            self._kept.append(self._relative())
        return self._kept[0]

    def _relative(self) -> RelativeBias:
        values = -self.slopes[:, None] * self.distances[None, :].to(self.slopes.dtype)
        return RelativeBias(values, self.query_length, self.key_length)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (1, H, stop − start, Lk)."""
        return self.as_relative().rows(start, stop)


@dataclass(frozen=True)
class SeparableBias(Bias):
    """A sum of products of query-side and key-side features, Σ_f left[i, f]·right[j, f]: again extra channels.

    Attributes:
        left: float32, (H, Lq, F).
        right: float32, (H, Lk, F).
    """

    proportional_to = "left"

    left: Tensor
    right: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (1, H, stop − start, Lk)."""
        return (self.left[:, start:stop] @ self.right.transpose(-1, -2)).unsqueeze(0)


@dataclass(frozen=True)
class ClippedContentBias(Bias):
    """Each query's product with a vector per clipped relative distance: query_i · table[clip(Δ)] (Shaw's keys).

    Attributes:
        query: queries, (B, H, Lq, d), see `queries`.
        table: float32, (R, d), one row per index.
        index_rows: gives the row index for the queries start…stop−1: int64, (B|1, stop − start, Lk).
        reach: K, if in a causal text the row of a distance Δ < K is K − Δ, and row 0 is that of all others.
        value_table: what the value side adds, (R, d) by the same index, if it does: a path that computes both sides
            at once reads it, all others call the scheme's `mix`.
        scaling: factor on the queries.
    """

    proportional_to = "table"

    query: Tensor
    table: Tensor
    index_rows: Callable[[int, int], Tensor]
    reach: int | None = None
    value_table: Tensor | None = None
    scaling: float = 1.0

    def scaled(self, share: Tensor) -> "Bias":
        """See `Bias.scaled`: both tables."""
        values = None if self.value_table is None else self.value_table * share
        return replace(self, table=self.table * share, value_table=values)

    def queries(self, start: int, stop: int) -> Tensor:
        """Scaled queries start…stop−1 in float32, made when they are needed: all at once are as large as q and more."""
        return self.query[:, :, start:stop].float() * self.scaling

    def scores(self) -> Tensor:
        """Every query's product with every row of the table: float32, (B, H, Lq, R)."""
        return self.queries(0, self.query.shape[2]) @ self.table.transpose(-1, -2)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (B, H, stop − start, Lk)."""
        products = self.queries(start, stop) @ self.table.transpose(-1, -2)
        index = self.index_rows(start, stop)[:, None].expand(*products.shape[:3], -1)
        return products.gather(-1, index)


@dataclass(frozen=True)
class RelativeContentBias(Bias):
    """Each query's product with a vector per head and relative distance: query_i · table[Δ] (Transformer-XL).

    Attributes:
        query: queries, (B, H, Lq, d), see `queries`; d need not be the heads' dimension.
        table: float32, (H|1, N, d), the last N of `Positions.distances`; to those before them goes the first row.
        key_length: Lk.
        shift: added to the queries, float32, broadcastable to them.
        scaling: factor on the shifted queries.
    """

    proportional_to = "table"

    query: Tensor
    table: Tensor
    key_length: int
    shift: Tensor | None = None
    scaling: float = 1.0

    def queries(self, start: int, stop: int) -> Tensor:
        """Queries start…stop−1, shifted and scaled, in float32; made when they are needed, see `ClippedContentBias`."""
        query = self.query[:, :, start:stop].float()
        return (query if self.shift is None else query + self.shift) * self.scaling

    def distance_vectors(self, start: int, stop: int) -> Tensor:
        """The table's rows for the elements start…stop−1 of `Positions.distances`, (H|1, stop − start, d)."""
        missing = self.query.shape[2] + self.key_length - 1 - self.table.shape[1]
        if missing <= start:
            return self.table[:, start - missing : stop - missing]
        index = torch.arange(start, stop, device=self.table.device) - missing
        return self.table.index_select(1, index.clamp(min=0))

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (B, H, stop − start, Lk), by Transformer-XL's relative shift (appendix B)."""
        block = stop - start
        width = block + self.key_length - 1
        products = self.products(start, stop, self.distance_vectors(start, start + width)).flip(-1)
        batch, heads = products.shape[:2]
        # Row r holds its Lk products from column (block − 1 − r) on; shifting the rows into place is a strided view.
        plane = block * width
        return products.contiguous().as_strided(
            (batch, heads, block, self.key_length), (heads * plane, plane, width - 1, 1), block - 1
        )

    def products(self, start: int, stop: int, table: Tensor) -> Tensor:
        """Products of the queries start…stop−1 with rows (H|1, N, d) of the table: (B, H, stop − start, N)."""
        query = self.queries(start, stop)
        if table.shape[0] == 1:  # matmul would repeat the one table for each head
            return (query.flatten(1, 2) @ table[0].t()).unflatten(1, query.shape[1:3])
        return query @ table.transpose(-1, -2)


@dataclass(frozen=True)
class DenseBias(Bias):
    """The last resort: rows that have no structure to exploit, computed a block of queries at a time.

    Attributes:
        compute: gives the rows of the queries start…stop−1, float32, broadcastable to (B, H, stop − start, Lk).
    """

    compute: Callable[[int, int], Tensor]

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`."""
        return self.compute(start, stop)

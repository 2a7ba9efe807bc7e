"""Kinds of bias: values that a scheme adds to the scaled scores, with the structure that makes them cheap.

A bias is a tensor of H × Lq × Lk only if it has no simpler structure. Every kind of bias can compute the float32 rows
of a block of queries (`rows`), which all backends support. Attention backends use the structure if they can.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F


class Bias(ABC):
    """Values that are added to the scaled score of each (head, query, key)."""

    proportional_to: ClassVar[str] = ""
    """Name of the tensor field to which all rows are proportional, or "" if there is none."""
    reads_scores: ClassVar[bool] = False
    """Whether the scores must be written out, because the kind overrides `replaced` or `added`."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Return the bias of the queries start…stop−1: float32, broadcastable to (B, H, stop − start, Lk)."""

    def replaced(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """Return the scaled scores (B, H, stop − start, Lk) that take the place of q·k, before a softcap.

        A kind that overrides this or `added` sets `reads_scores`.
        """
        return scores

    def added(self, scores: Tensor, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """Return scores (B, H, stop − start, Lk) with the bias added.

        Args:
            scores: float32 scores after a softcap.
            start: first query.
            stop: one past the last query.
            visible: which keys each query sees, broadcastable to the scores; None: all keys.
        """
        return scores + self.rows(start, stop)

    def scaled(self, share: Tensor) -> "Bias":
        """Return the bias times a share 0…1 (0-dim): of the same kind if `proportional_to` is set, otherwise dense."""
        if not self.proportional_to:
            return DenseBias(lambda start, stop: _scaled(self.rows(start, stop), share))
        return replace(self, **{self.proportional_to: _scaled(getattr(self, self.proportional_to), share)})  # type: ignore[type-var]


def _scaled(values: Tensor, share: Tensor) -> Tensor:
    """Return share · values; −∞, which hides a key, becomes ln(1 − share), which multiplies exp(score) by 1 − share."""
    return torch.where(values.isneginf(), torch.log1p(-share), values * share)


@dataclass(frozen=True)
class RelativeBias(Bias):
    """A bias with one value per head and relative distance: a Toeplitz matrix, stored as a vector per head.

    Attributes:
        values: float32, (H, Lq + Lk − 1); element n is the value of Δ = offset + n − (Lk − 1), see
            `Positions.distances`.
        query_length: Lq.
        key_length: Lk.
    """

    proportional_to = "values"

    values: Tensor
    query_length: int
    key_length: int
    _within: dict[tuple[int | None, int | None], Tensor] = field(init=False, repr=False, default_factory=dict)

    def flipped_rows(self, start: int, stop: int, reversed_values: Tensor | None = None) -> Tensor:
        """Return the rows of the queries stop−1, …, start (in this order) as a view with O(Lq + Lk) memory.

        If the queries are in reverse order, the matrix is constant along its anti-diagonals (a Hankel matrix) and is a
        strided view of the reversed vector: element (r, j) is at index Lq − stop + r + j.

        Args:
            start: first query.
            stop: one past the last query.
            reversed_values: `values` reversed along the last dimension, if the caller has them (any dtype).

        Returns:
            A view of (H, stop − start, Lk). Rows overlap in memory, so it must not be written to.
        """
        source = self.values.flip(-1) if reversed_values is None else reversed_values
        shape = (source.shape[0], stop - start, self.key_length)
        strides = (source.stride(0), source.stride(1), source.stride(1))
        return source[:, self.query_length - stop :].as_strided(shape, strides)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (1, H, stop − start, Lk)."""
        return self.flipped_rows(start, stop).flip(1).unsqueeze(0)

    def within(self, least: int | None, most: int | None) -> Tensor:
        """Return the values, (H, Lq + Lk − 1), with −inf where i − j of query index i and key index j is out of range.

        The range is least ≤ i − j ≤ most; None is no limit. The result is computed once for all layers that share the
        bias.
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
    """A bias of −m·Δ with one slope m per head, for causal attention.

    In a causal softmax, −m·(i − j) and +m·j differ by a constant of the row. So extra head channels of q and k can add
    this bias (`attention.folding`), and any fused causal kernel can compute it without a bias argument.

    Attributes:
        slopes: float32, (H,); with positive slopes the bias decreases with distance.
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
        """Return this bias as a `RelativeBias`, created once for all layers unless the slopes need a gradient."""
        if torch.is_grad_enabled() and self.slopes.requires_grad:
            return self._relative()  # a stored bias would be used outside its layer under gradient checkpointing
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
    """A sum of products of query features and key features, Σ_f left[i, f]·right[j, f]; extra channels can add it.

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
    """The product of each query with a vector per clipped relative distance: query_i · table[clip(Δ)] (Shaw's keys).

    Attributes:
        query: queries, (B, H, Lq, D), see `queries`.
        table: float32, (R, D), one row per index.
        index_rows: returns the row index for the queries start…stop−1: int64, (B|1, stop − start, Lk).
        reach: K, if in a causal text the row of a distance Δ < K is K − Δ and the row of all others is 0; else None.
        value_table: table (R, D) of the value side, with the same index, or None. A path that computes both sides at
            once reads it; all other paths call the scheme's `mix`.
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
        """See `Bias.scaled`; both tables are scaled."""
        values = None if self.value_table is None else self.value_table * share
        return replace(self, table=self.table * share, value_table=values)

    def queries(self, start: int, stop: int) -> Tensor:
        """Return the scaled queries start…stop−1 in float32; not stored, because all are at least as large as q."""
        return self.query[:, :, start:stop].float() * self.scaling

    def scores(self) -> Tensor:
        """Return the products of all queries with all rows of the table: float32, (B, H, Lq, R)."""
        return self.queries(0, self.query.shape[2]) @ self.table.transpose(-1, -2)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (B, H, stop − start, Lk)."""
        products = self.queries(start, stop) @ self.table.transpose(-1, -2)
        index = self.index_rows(start, stop)[:, None].expand(*products.shape[:3], -1)
        return products.gather(-1, index)


@dataclass(frozen=True)
class PairedContentBias(Bias):
    """The product of query and key with a vector per clipped relative distance: (query_i + key_j) · table[clip(Δ)].

    Attributes:
        by_query: the queries' part.
        key: all keys, (B, Hkv, Lk, d).
    """

    by_query: ClippedContentBias
    key: Tensor

    def scaled(self, share: Tensor) -> "PairedContentBias":
        """See `Bias.scaled`."""
        return replace(self, by_query=replace(self.by_query, table=self.by_query.table * share))

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (B, H, stop − start, Lk)."""
        rows = self.by_query.rows(start, stop)
        by_key = self._key_rows(start, stop)
        return rows + by_key.repeat_interleave(rows.shape[1] // by_key.shape[1], dim=1)

    def _key_rows(self, start: int, stop: int) -> Tensor:
        """Return each key's product with the vectors of its distances: float32, (B, Hkv, stop − start, Lk)."""
        key, table = self.key.float() * self.by_query.scaling, self.by_query.table
        index = self.by_query.index_rows(start, stop)
        # A vector for each pair, or each key's product with all vectors: whichever is smaller. While a graph is traced,
        # comparing sizes would tie it to one length.
        products = key.shape[0] * key.shape[1] * table.shape[0]
        if torch.compiler.is_compiling() or index.shape[0] > 1 or index.shape[1] * table.shape[1] > products:
            index = index.transpose(-1, -2)[:, None].expand(*key.shape[:3], -1)
            return (key @ table.t()).gather(-1, index).transpose(-1, -2)
        return torch.einsum("bhkd,nkd->bhnk", key, F.embedding(index[0], table))


@dataclass(frozen=True)
class RelativeContentBias(Bias):
    """The product of each query with a vector per head and relative distance: query_i · table[Δ] (Transformer-XL).

    Attributes:
        query: queries, (B, H, Lq, D), see `queries`; D may differ from the heads' dimension.
        table: float32, (H|1, N, D), for the last N of `Positions.distances`; the first row is also for those before.
        key_length: Lk.
        shift: float32 summand of the queries, broadcastable to them, or None.
        scaling: factor on the shifted queries.
    """

    proportional_to = "table"

    query: Tensor
    table: Tensor
    key_length: int
    shift: Tensor | None = None
    scaling: float = 1.0

    def queries(self, start: int, stop: int) -> Tensor:
        """Return the shifted, scaled queries start…stop−1 in float32; not stored, see `ClippedContentBias.queries`."""
        query = self.query[:, :, start:stop].float()
        return (query if self.shift is None else query + self.shift) * self.scaling

    def distance_vectors(self, start: int, stop: int) -> Tensor:
        """Return the table's rows for the elements start…stop−1 of `Positions.distances`, (H|1, stop − start, D)."""
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
        # The Lk products of row r begin at column (block − 1 − r); a strided view aligns the rows.
        plane = block * width
        return products.contiguous().as_strided(
            (batch, heads, block, self.key_length), (heads * plane, plane, width - 1, 1), block - 1
        )

    def products(self, start: int, stop: int, table: Tensor) -> Tensor:
        """Return the products of the queries start…stop−1 with table rows (H|1, N, D): (B, H, stop − start, N)."""
        query = self.queries(start, stop)
        if table.shape[0] == 1:  # matmul would copy the table for each head
            return (query.flatten(1, 2) @ table[0].t()).unflatten(1, query.shape[1:3])
        return query @ table.transpose(-1, -2)


@dataclass(frozen=True)
class DenseBias(Bias):
    """A bias without a structure that can be used: rows are computed for one block of queries at a time.

    Attributes:
        compute: returns the rows of the queries start…stop−1, float32, broadcastable to (B, H, stop − start, Lk).
    """

    compute: Callable[[int, int], Tensor]

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`."""
        return self.compute(start, stop)

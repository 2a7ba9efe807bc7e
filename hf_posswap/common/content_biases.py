"""Kinds of bias that depend on queries and keys: products with a vector per relative distance."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.common.biases import Bias


@dataclass(frozen=True)
class ClippedContentBias(Bias):
    """The product of each query with a vector per index, such as a clipped distance: query_i · table[index].

    Attributes:
        query: queries, (B, H, Lq, D), see `queries`.
        table: float32, (R, D), or (H, R, D) with other vectors for each head; one row per index.
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
    """The products of query and key with a vector per index: query_i · table[index] + key_j · key_table[index].

    Attributes:
        by_query: the queries' part; its index is that of the keys, too.
        key: all keys, (B, Hkv, Lk, D).
        key_table: float32, (R, D) or (H, R, D); None: the table of `by_query`.
    """

    by_query: ClippedContentBias
    key: Tensor
    key_table: Tensor | None = None
    _products: list[Tensor] = field(init=False, repr=False, default_factory=list)
    """Each key's product with all vectors, computed once for all blocks of queries."""

    def scaled(self, share: Tensor) -> "PairedContentBias":
        """See `Bias.scaled`; both tables are scaled."""
        by_query = replace(self.by_query, table=self.by_query.table * share)
        return replace(self, by_query=by_query, key_table=None if self.key_table is None else self.key_table * share)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (B, H, stop − start, Lk)."""
        rows = self.by_query.rows(start, stop)
        by_key = self._key_rows(start, stop)
        if by_key.shape[1] != rows.shape[1]:
            by_key = by_key.repeat_interleave(rows.shape[1] // by_key.shape[1], dim=1)
        return rows + by_key

    def _key_rows(self, start: int, stop: int) -> Tensor:
        """Return each key's product with the vectors of its distances: float32, (B, Hkv or H, stop − start, Lk)."""
        table = self.by_query.table if self.key_table is None else self.key_table
        key = self.key
        if table.dim() == 3:
            key = key.repeat_interleave(table.shape[0] // key.shape[1], dim=1)
        index = self.by_query.index_rows(start, stop)
        # A vector for each pair, or each key's product with all vectors: whichever is smaller. While a graph is traced,
        # comparing sizes would tie it to one length.
        vectors = index.shape[1] * table[..., 0, :].numel()
        products = key.shape[0] * key.shape[1] * table.shape[-2]
        if self._products or torch.compiler.is_compiling() or index.shape[0] > 1 or vectors > products:
            index = index.transpose(-1, -2)[:, None].expand(*key.shape[:3], -1)
            return self._key_products(key, table).gather(-1, index).transpose(-1, -2)
        scaled = key.float() * self.by_query.scaling
        if table.dim() == 3:
            return torch.einsum("bhkd,hnkd->bhnk", scaled, table[:, index[0]])
        return torch.einsum("bhkd,nkd->bhnk", scaled, F.embedding(index[0], table))

    def _key_products(self, key: Tensor, table: Tensor) -> Tensor:
        """Return the products of all keys with all rows of a table: float32, (B, Hkv or H, Lk, R)."""
        if self._products:
            return self._products[0]
        products = (key.float() * self.by_query.scaling) @ table.transpose(-1, -2)
        if not torch.compiler.is_compiling():
            self._products.append(products)
        return products


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

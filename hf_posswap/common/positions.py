"""Positions of the queries and keys of one forward pass, int64, and their relative distances.

The base model computes them once per forward and passes them to every layer, so that no layer computes positions again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.errors import PositionError

UNKNOWN_KEYS = (
    "position_ids do not continue the cached tokens, so the cached keys' positions are unknown. "
    "Pass position_ids that go on where the cache ends (with the 2D attention_mask if the batch is "
    "padded), or run without a cache. If generate was given prompts padded on the right, pad them on the "
    "left: tokenizer.padding_side = 'left'."
)


def read_together(facts: Mapping[str, Tensor]) -> dict[str, int]:
    """Return 0-dim tensors as numbers. On a GPU each read waits for all that was started; this one is for all facts."""
    return dict(zip(facts, torch.stack([fact.long() for fact in facts.values()]).tolist(), strict=True))


def facts_of(query: Tensor) -> dict[str, Tensor]:
    """Return `Positions.farthest` and `Positions.rows_alike` of queries' positions as 0-dim tensors, to be read."""
    last = query.amax(dim=1)
    return {"farthest": last.amax(), "rows_alike": (last == last[0]).all()}


@dataclass
class Positions:
    """Positions of queries and keys in one forward pass.

    Attributes:
        query: positions of the queries, int64, (B, Lq) or (1, Lq).
        key: positions of the keys, int64, (B, Lk) or (1, Lk); entries of padding are arbitrary.
        offset: index of the first query among the keys (the number of cached tokens); a 0-dim tensor for a static
            cache.
        causal: whether attention is causal.
        by_index: True if the relative distance of every visible pair is the difference of the indices: single, padded,
            and packed sequences whose documents are masked from each other. False if positions skip, so that distances
            must be computed from `query` and `key`. None if the positions of cached keys are unknown.
        continues: boolean (0-dim): whether the queries' positions continue those of the cached keys, for a traced
            graph, in which this is known only when it runs. None: they continue them, or `by_index` is None.
        bound: if positions skip, an upper bound (exclusive) of the positions of visible tokens; None: not known.
        shown: which keys a 2D mask shows, boolean, (B|1, Lk); None: there is no such mask.
        uneven: whether there is a 4D mask, which may hide a key from some queries only.
    """

    query: Tensor
    key: Tensor
    offset: int | Tensor
    causal: bool
    by_index: bool | None = True
    continues: Tensor | None = None
    bound: int | None = None
    shown: Tensor | None = None
    uneven: bool = False
    _distances: Tensor | None = field(init=False, repr=False, default=None)
    read: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    """Facts that were read from the device, see `facts_of`; positions of the same queries share them."""

    def to(self, device: torch.device | str | int) -> "Positions":
        """Return the same positions on another device; accelerate calls this to move arguments between devices."""
        offset = self.offset.to(device) if isinstance(self.offset, Tensor) else self.offset
        continues = None if self.continues is None else self.continues.to(device)
        shown = None if self.shown is None else self.shown.to(device)
        moved = replace(
            self, query=self.query.to(device), key=self.key.to(device), offset=offset, continues=continues, shown=shown
        )
        moved.read = self.read
        return moved

    def of_keys(self, first: int, length: int) -> "Positions":
        """Return the positions of a layer whose keys are the `length` keys from index `first` on.

        Keys after the last one are unused entries of a static cache, which the mask hides.
        """
        key = self.key[:, first : first + length]
        missing = max(0, length - key.shape[1])
        if missing > 0:
            ahead = key[:, -1:] + torch.arange(1, missing + 1, device=key.device)
            key = torch.cat([key, ahead], dim=1)
        shown = None if self.shown is None else F.pad(self.shown[:, first : first + length], (0, missing), value=True)
        found = replace(self, key=key, offset=self.offset - first, shown=shown)
        found.read = self.read
        return found

    @property
    def query_length(self) -> int:
        """Lq, the number of queries."""
        return self.query.shape[1]

    @property
    def key_length(self) -> int:
        """Lk, the number of keys, including cached ones."""
        return self.key.shape[1]

    def __post_init__(self) -> None:
        # Computed here and not on first use: all layers share the distances, and on first use they would be created
        # in a compiled or checkpointed region of one layer.
        if self.by_index:
            first, stop = 1 - self.key_length, self.query_length
            if isinstance(self.offset, int):
                self._distances = torch.arange(first + self.offset, stop + self.offset, device=self.query.device)
            else:
                self._distances = torch.arange(first, stop, device=self.query.device) + self.offset

    @property
    def distances(self) -> Tensor:
        """All relative distances Δ = i − j, ascending, int64, (Lq + Lk − 1,).

        Element n is Δ = offset + n − (Lk − 1), so the element of query row i and key column j is n = i − j + Lk − 1.

        Raises:
            PositionError: distances are not differences of indices; use `distance_rows`.
        """
        self.require_known()
        if self._distances is None:
            raise PositionError("positions skip: distances differ from index differences; use distance_rows().")
        return self._distances

    def distance_rows(self, start: int, stop: int) -> Tensor:
        """Return the relative distances Δ = i − j of the query rows start…stop−1, int64, (B|1, stop − start, Lk).

        In a causal model, the distance of a key whose position is after the query's is 0.
        """
        self.require_known()
        if self.by_index:
            columns = torch.arange(self.key_length, device=self.query.device)
            rows = torch.arange(start, stop, device=self.query.device) + self.offset
            distance = (rows[:, None] - columns[None, :]).unsqueeze(0)
        else:
            distance = self.query[:, start:stop, None] - self.key[:, None, :]
        return distance.clamp(min=0) if self.causal else distance

    def bounded_distances(self) -> Tensor | None:
        """Return all distances of positions below `bound`, ascending, int64, (2·bound − 1,); None without a bound."""
        return None if self.bound is None else torch.arange(1 - self.bound, self.bound, device=self.query.device)

    def bounded_index(self, start: int, stop: int) -> Tensor:
        """Return the index in `bounded_distances` of each of `distance_rows`; arbitrary for hidden tokens."""
        assert self.bound is not None
        return (self.distance_rows(start, stop) + self.bound - 1).clamp(0, 2 * self.bound - 2)

    def row_lengths(self) -> Tensor:
        """Return the text length of each row, int64, (B, 1) or (1, 1): its last position plus one."""
        return self.query.amax(dim=1, keepdim=True) + 1

    @property
    def farthest(self) -> int:
        """The largest position of the queries. The device is read once per forward; not for a graph that is traced."""
        return self._fact("farthest")

    @property
    def rows_alike(self) -> bool:
        """Whether all rows have the same text length. The device is read once per forward, as for `farthest`."""
        return bool(self._fact("rows_alike"))

    def _fact(self, name: str) -> int:
        if name not in self.read:
            self.read |= read_together(facts_of(self.query))
        return self.read[name]

    def require_known(self) -> None:
        """Refuse to continue if the positions of the cached keys are unknown.

        Raises:
            PositionError: they are unknown. A traced graph raises torch's RuntimeError with the same message when it
                runs.
        """
        if self.by_index is None:
            raise PositionError(UNKNOWN_KEYS)
        if self.continues is not None:
            torch._assert_async(self.continues, UNKNOWN_KEYS)

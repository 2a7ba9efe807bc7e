"""The keys that each query sees, as segments: runs of queries whose key bounds are constant or move with the query.

Causal masks, left and right padding, packed documents, sliding windows, unused entries of a static cache and all
combinations of these have this form. A segment replaces the mask: keys outside its bounds are not read, and distances
outside its range are −inf in the vector of a `RelativeBias`.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_posswap.attention.inputs import AttentionInputs

ROWS_AT_A_TIME = 64
"""Rows of a mask that are read at once; torch counts in int64, which needs eight times the memory of the mask."""
SHORTEST_MEAN = 16
"""Smallest mean number of queries per segment; below it, segments are not used and the mask is applied as it is."""


class Segment(NamedTuple):
    """The queries start…stop−1 of some batch rows: query i sees the keys j in first…last−1 with least ≤ i − j ≤ most.

    Indices count from the first query and the first key of the call. `least` and `most` are None if there is no limit.
    """

    batch: slice
    start: int
    stop: int
    first: int
    last: int
    least: int | None
    most: int | None

    def blocks(self, step: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield blocks of at most `step` queries: (start, stop, first key, one past the last key)."""
        for start in range(self.start, self.stop, step):
            stop = min(start + step, self.stop)
            first = self.first if self.most is None else max(self.first, start - self.most)
            last = self.last if self.least is None else min(self.last, stop - self.least)
            yield start, stop, first, last


def visible_segments(inputs: AttentionInputs) -> list[Segment] | None:
    """Return the segments of a call, or None if the mask has another form; computed once per forward and mask."""
    queries, keys, everyone = inputs.query_length, inputs.key_length, slice(0, inputs.q.shape[0])
    if inputs.implicit_causal:
        return [Segment(everyone, 0, queries, 0, min(queries, keys), 0, None)]
    if inputs.mask is None:
        return [Segment(everyone, 0, queries, 0, keys, None, None)]
    if not isinstance(inputs.mask, Tensor) or inputs.mask.shape[1] != 1 or learns(inputs.mask):
        return None
    segments: list[Segment] | None = inputs.once("segments", (inputs.mask,), lambda: mask_segments(inputs.mask, inputs))
    return segments


def learns(mask: Tensor) -> bool:
    """Return whether a mask needs a gradient; segments cannot replace such a mask."""
    return torch.is_grad_enabled() and mask.requires_grad


def mask_segments(mask: Tensor, inputs: AttentionInputs) -> list[Segment] | None:
    """Return the segments of a boolean or additive mask (B|1, 1, Lq|1, Lk), or None if it has another form."""
    mask = mask[:, 0, :, : inputs.key_length].expand(-1, inputs.query_length, -1)
    bounds = interval_bounds(mask)
    if bounds is None:
        return None
    rows = torch.stack(bounds).tolist()
    segments: list[Segment] = []
    batch = inputs.q.shape[0]
    for row, (first, last) in enumerate(zip(*rows, strict=True)):
        everyone = mask.shape[0] == 1
        segments += _row_segments(first, last, slice(0, batch) if everyone else slice(row, row + 1))
    if len(segments) * SHORTEST_MEAN > max(SHORTEST_MEAN, inputs.query_length) * mask.shape[0] + 4 * SHORTEST_MEAN:
        return None
    return _merged(segments)


def shown_by(segments: Sequence[Segment], batch: int, queries: int, keys: int) -> Tensor:
    """Return the boolean mask (B, Lq, Lk) of segments."""
    mask = torch.zeros(batch, queries, keys, dtype=torch.bool)
    place, key = torch.arange(queries)[:, None], torch.arange(keys)
    for segment in segments:
        shown = (place >= segment.start) & (place < segment.stop) & (key >= segment.first) & (key < segment.last)
        if segment.least is not None:
            shown = shown & (place - key >= segment.least)
        if segment.most is not None:
            shown = shown & (place - key <= segment.most)
        mask[segment.batch] |= shown
    return mask


def interval_bounds(mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the first key and one past the last key of each query, int64, (B, Lq) each; both 0 if it sees no key.

    Return None if the keys that a query sees are not contiguous, or if an additive mask has other values than 0 and the
    minimum.

    Args:
        mask: boolean or additive, (B, Lq, Lk).
    """
    places = torch.arange(mask.shape[-1], device=mask.device)
    firsts, lasts = [], []
    for part in mask.split(ROWS_AT_A_TIME, dim=1):
        visible = part
        if part.dtype != torch.bool:
            visible = part > torch.finfo(part.dtype).min
            if not bool((part.masked_fill(~visible, 0) == 0).all()):
                return None
        count = visible.sum(-1)
        first = visible.to(torch.uint8).argmax(-1)
        last = first + count
        if not bool(((places >= first[..., None]) & (places < last[..., None])).eq(visible).all()):
            return None
        firsts.append(torch.where(count > 0, first, 0))
        lasts.append(last.where(count > 0, 0))
    return torch.cat(firsts, 1), torch.cat(lasts, 1)


def _row_segments(first: list[int], last: list[int], batch: slice) -> Iterator[Segment]:
    """Yield the segments of one row of the batch; queries that see no key are in no segment."""
    steps = [(b - a, d - c) for (a, b), (c, d) in zip(pairwise(first), pairwise(last), strict=True)]
    start, queries = 0, len(first)
    while start < queries:
        if last[start] == 0:
            start += 1
            continue
        step: Any = steps[start] if start < queries - 1 else None
        stop = start + 1
        if step is not None and set(step) <= {0, 1}:
            while stop < queries and steps[stop - 1] == step and last[stop] > 0:
                stop += 1
        else:
            step = (0, 0)
        # If the first key moves with the query, first[i] = i − most; if the last key does, last[i] = i − least + 1.
        most = start - first[start] if step[0] else None
        least = start + 1 - last[start] if step[1] else None
        yield Segment(batch, start, stop, first[start], last[stop - 1], least, most)
        start = stop


def _merged(segments: list[Segment]) -> list[Segment]:
    """Merge neighbouring rows of the batch that have the same segments."""
    by_row: dict[tuple[int, int], list[Segment]] = {}
    for segment in segments:
        by_row.setdefault((segment.batch.start, segment.batch.stop), []).append(segment)
    result: list[Segment] = []
    previous: list[Segment] = []
    for (start, stop), own in by_row.items():
        if previous and previous[0].batch.stop == start and [s[1:] for s in previous] == [s[1:] for s in own]:
            joined = slice(previous[0].batch.start, stop)
            previous = [segment._replace(batch=joined) for segment in previous]
        else:
            result += previous
            previous = own
    return result + previous

"""Conversion of the arguments of a base model's forward to `Positions`, once per forward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hf_posswap.attention.visibility import ROWS_AT_A_TIME
from hf_posswap.common.positions import Positions, facts_of, read_together
from hf_posswap.errors import PositionError
from hf_posswap.swapped.forward_masks import document_starts, masks_among, shown_entries


class _Known(NamedTuple):
    """Positions that a text may have: of its new tokens (B|1, Lq) and of all keys (B|1, Lk).

    `gaps` is whether hidden tokens are between shown ones, boolean, 0-dim; None: the positions are indices.
    """

    query: Tensor
    key: Tensor
    gaps: Tensor | None = None


def positions_of(
    arguments: dict[str, Any],
    cache: Any,
    length: int,
    device: torch.device,
    causal: bool,
    sizes: dict[int, tuple[int, int]] | None = None,
) -> Positions:
    """Return the positions of the queries and keys of a forward.

    Positions are `position_ids` if given. Otherwise they are counted from a 2D `attention_mask`, so that padding on the
    left does not shift a text, and without a mask from the number of cached tokens. A 4D mask states which keys each
    query sees: without `position_ids`, positions are then indices. With a 4D mask and `position_ids`, every distance is
    that of the given positions. The positions of cached keys are then either their indices or counted along the shown
    keys of the mask; the given positions must continue one of the two.

    What depends on values is read from the device at once, as a GPU is waited for at each read. Without a mask and
    without `position_ids`, nothing is read.

    Args:
        arguments: keyword arguments of the base model's forward.
        cache: the cache among them, or None.
        length: number of new tokens Lq.
        device: device of the tokens.
        causal: whether attention is causal.
        sizes: see `sizes_of_keys`; None without a cache.

    Raises:
        PositionError: the length of the mask does not fit the number of tokens.
    """
    masks = masks_among(arguments.get("attention_mask"))
    found = _positions_under(masks, arguments.get("position_ids"), cache, length, device, causal, sizes)
    found.uneven = any(mask.dim() == 4 for mask in masks)
    if masks and not found.uneven:
        found.shown = _shown_keys(masks[0], found.key_length, sizes).to(device)
    return found


def _positions_under(
    masks: list[Tensor],
    given: Tensor | None,
    cache: Any,
    length: int,
    device: torch.device,
    causal: bool,
    sizes: dict[int, tuple[int, int]] | None,
) -> Positions:
    """Return the positions under masks, without the fields that describe the masks; `given`: `position_ids`."""
    mask = masks[0] if masks else None
    for other in masks[1:]:  # masks for kinds of layers; the longest shows the most keys
        mask = other if mask is None or other.shape[-1] > mask.shape[-1] else mask
    offset: int | Tensor = 0 if cache is None else cache.get_seq_length()
    if isinstance(offset, Tensor):
        offset = offset.clone()  # a static cache updates its counter in place, in each layer
    # The length includes keys that a sliding window has dropped.
    key_length = max([count + first for count, first in sizes.values()]) if sizes else length
    _check_length(mask, offset, length, key_length)
    index = torch.arange(key_length, device=device).unsqueeze(0)
    by_index = Positions(_from_offset(index, offset, length, key_length), index, offset, causal)
    if isinstance(offset, int):
        by_index.read = {"farthest": offset + length - 1, "rows_alike": True}
    if given is None:
        if mask is None or mask.dim() != 2:
            return by_index
        shown = _shown_keys(mask, key_length, sizes).to(device)
        return _along(mask, _counted(shown, offset, length), by_index)
    given = (given.unsqueeze(0) if given.dim() == 1 else given).to(device)
    if not _is_cached(offset):
        return _from_start(given, [shown.to(device) for shown in masks], key_length, offset, causal)
    known = [] if mask is not None and mask.dim() == 2 else [_Known(by_index.query, index)]
    shown = torch.ones_like(index, dtype=torch.bool)
    if mask is not None:
        shown = _shown_keys(mask, key_length, sizes).to(device)
        dropped = any(isinstance(first, int) and first > 0 for _, first in (sizes or {}).values())
        known.append(_counted(shown, offset, length, given if mask.dim() == 4 and dropped else None))
    return _continuing(given, known, _from_offset(shown, offset, length, key_length).bool(), by_index)


def _check_length(mask: Tensor | None, offset: int | Tensor, length: int, key_length: int) -> None:
    """Refuse a 2D mask whose length does not fit the tokens; it may leave out the unused entries of a static cache.

    Raises:
        PositionError: the length does not fit.
    """
    if mask is None or mask.dim() != 2:
        return
    least = offset + length if isinstance(offset, int) else length
    if not least <= mask.shape[1] <= key_length:
        raise PositionError(
            f"the attention mask is for {mask.shape[1]} tokens, and there are {min(least, key_length)}: {length} new "
            "ones and those in the cache. Give a mask of as many."
        )


def _is_cached(offset: int | Tensor) -> bool:
    """Return whether keys are cached; True for a static cache while a graph is traced, because it may hold keys."""
    return torch.compiler.is_compiling() or bool(offset) if isinstance(offset, Tensor) else offset > 0


def _shown_keys(mask: Tensor, key_length: int, sizes: dict[int, tuple[int, int]] | None) -> Tensor:
    """Return which keys of the text a 2D mask shows, or a 4D mask shows to at least one query: boolean, (B, Lk).

    Keys that a window has dropped are not shown. Unused entries of a static cache after the mask's end are shown.
    """
    if mask.dim() == 2:
        return functional.pad(shown_entries(mask), (0, key_length - mask.shape[1]), value=True)
    shown = shown_entries(mask).any(1).any(1)
    before = [first for count, first in (sizes or {}).values() if count == mask.shape[-1]]
    shown = functional.pad(shown, (min(before, default=0), 0))[:, :key_length]
    return functional.pad(shown, (0, key_length - shown.shape[1]))


def _along(mask: Tensor, known: _Known, by_index: Positions) -> Positions:
    """Return positions counted along the keys that a 2D mask shows; `by_index` if it hides nothing.

    While a graph is traced, values of the mask are not available, and positions are marked as skipping.
    """
    read: dict[str, int] = {"hides": True, "gaps": True}
    if not torch.compiler.is_compiling():
        assert known.gaps is not None
        hides = ~mask.to(known.key.device).all()
        read = read_together({"hides": hides, "gaps": known.gaps, **facts_of(known.query)})
    return _of_keys(known.query, known.key, by_index, read, bool(read["gaps"])) if read["hides"] else by_index


def _from_start(given: Tensor, masks: list[Tensor], key_length: int, offset: int | Tensor, causal: bool) -> Positions:
    """Return given positions of tokens before which nothing is cached.

    Without a mask, a jump in the positions begins a new document, which `document_mask` separates. While a graph is
    traced, positions under a mask are marked as skipping.
    """
    read: dict[str, int] = {"steady": not masks}
    if not torch.compiler.is_compiling():
        steady = [_are_steady(given, shown) for shown in masks]
        about = {"steady": torch.stack(steady).all()} if masks else {"packed": document_starts(given).any()}
        read |= read_together(about | facts_of(given))
    positions = Positions(given, _pad_keys(given, key_length), offset, causal, bool(read["steady"]))
    positions.read = read
    return positions


def _counted(shown: Tensor, offset: int | Tensor, length: int, given: Tensor | None = None) -> _Known:
    """Return positions counted along the shown keys.

    Distances are differences of indices unless there are gaps.

    Args:
        shown: boolean (B, Lk), see `_shown_keys`.
        offset: number of cached tokens.
        length: number of new tokens.
        given: positions of the new tokens (B|1, Lq), from which the number of dropped tokens that are not padding is
            computed; None: a window has dropped no tokens.
    """
    counted = shown.cumsum(-1) - 1
    if given is not None:
        new = _from_offset(shown, offset, length, shown.shape[1]).bool()
        ahead = (given - _from_offset(counted, offset, length, shown.shape[1])).masked_fill(~new, 0)
        hidden_before = (counted < 0).sum(-1, keepdim=True)
        counted = counted + ahead.amax(-1, keepdim=True).clamp(min=0).minimum(hidden_before)
    counted = counted.clamp(min=0)
    begins = torch.diff(functional.pad(shown.long(), (1, 0)), dim=1) == 1
    return _Known(_from_offset(counted, offset, length, shown.shape[1]), counted, (begins.sum(1) > 1).any())


def _are_steady(given: Tensor, mask: Tensor) -> Tensor:
    """Return whether positions (B|1, L) differ as indices do for all pairs that a mask shows, boolean, 0-dim."""
    length = given.shape[1]
    ahead = given - torch.arange(length, device=given.device)
    shown = shown_entries(mask)
    if mask.dim() == 2:
        ahead, shown = torch.broadcast_tensors(ahead, shown[:, :length])
        least, most = (ahead.masked_fill(~shown, fill) for fill in (torch.iinfo(torch.int64).max, -1 - length))
        return (most.amax(1) <= least.amin(1)).all()
    rows = shown[..., :length].any(1).expand(-1, length, -1).split(ROWS_AT_A_TIME, dim=1)
    starts = range(0, length, ROWS_AT_A_TIME)
    unsteady = [
        (part & (ahead[:, start : start + ROWS_AT_A_TIME, None] != ahead[:, None])).any()
        for start, part in zip(starts, rows, strict=True)
    ]
    return ~torch.stack(unsteady).any()


def _continuing(given: Tensor, known: list[_Known], shown: Tensor, by_index: Positions) -> Positions:
    """Return given positions with the positions of the cached keys: the first of `known` that they continue.

    Args:
        given: positions of the new tokens, (B|1, Lq).
        known: possible positions, from the cache and the mask.
        shown: which new tokens a mask shows, boolean (B|1, Lq).
        by_index: positions that are indices.
    """
    fits = [((given == each.query) | ~shown).all() for each in known]
    offset, causal = by_index.offset, by_index.causal
    if torch.compiler.is_compiling():
        first, last = known[0], known[-1]
        key = first.key if first is last else torch.where(fits[0], first.key, last.key)
        same = first is last and first.gaps is None
        return Positions(given, key, offset, causal, same, torch.stack(fits).any(), None if same else key.shape[1])
    about = {f"fits {number}": fit for number, fit in enumerate(fits)}
    about |= {f"gaps {number}": each.gaps for number, each in enumerate(known) if each.gaps is not None}
    read = read_together(about | facts_of(given))
    for number, each in enumerate(known):
        if read[f"fits {number}"]:
            return _of_keys(given, each.key, by_index, read, bool(read.get(f"gaps {number}")))
    return _of_keys(given, known[0].key, by_index, read, gaps=None)


def _of_keys(query: Tensor, key: Tensor, by_index: Positions, read: dict[str, int], gaps: bool | None) -> Positions:
    """Return positions of queries and keys, with what was read about them.

    With gaps, distances differ from those of indices; None: the positions of cached keys are unknown.
    """
    same = None if gaps is None else not gaps
    bound = key.shape[1] if gaps else None
    positions = Positions(query, key, by_index.offset, by_index.causal, same, bound=bound)
    positions.read = read
    return positions


def check_given(arguments: dict[str, Any], batch: int, length: int) -> None:
    """Refuse position_ids that cannot be the positions of the tokens.

    Raises:
        PositionError: they are not integers, or not of shape (n,), (1, n) or (B, n) for B texts of n new tokens.
    """
    given = arguments.get("position_ids")
    if given is None:
        return
    whole = isinstance(given, Tensor) and given.dtype in (
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    )
    if not whole or tuple(given.shape) not in ((length,), (1, length), (batch, length)):
        found = f"a {given.dtype} tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
        raise PositionError(
            f"position_ids are {found}; for {batch} texts of {length} new tokens they must be integers of shape "
            f"({length},), (1, {length}) or ({batch}, {length}). Leave them out to count from the cache or the mask."
        )


def sizes_of_keys(cache: Any, length: int) -> dict[int, tuple[int, int]] | None:
    """Return for each layer of a cache the number of keys that it will return with `length` new ones, and their start.

    The start is above 0 if a sliding window has dropped keys. Return None if there is no cache.
    """
    if cache is None:
        return None
    cache = getattr(cache, "self_attention_cache", cache)  # the cache of a decoder with cross-attention has two parts
    without = [getattr(cache, name, None) for name in ("is_linear", "is_dummy")]  # layers that keep no keys
    skipped = {n for flags in without if isinstance(flags, list) for n, flag in enumerate(flags) if flag}
    layers = range(max(1, len(getattr(cache, "layers", ()))))
    return {layer: cache.get_mask_sizes(length, layer) for layer in layers if layer not in skipped}


def _from_offset(key: Tensor, offset: int | Tensor, length: int, key_length: int) -> Tensor:
    """Return the positions of the queries: the positions of the keys from the offset on."""
    if isinstance(offset, int):
        if offset + length <= key_length:
            return key[:, offset : offset + length]
        return key[:, -1:] + torch.arange(1, length + 1, device=key.device)
    index = (torch.arange(length, device=key.device) + offset.to(key.device)).expand(key.shape[0], -1)
    return key.gather(1, index)


def _pad_keys(positions: Tensor, key_length: int) -> Tensor:
    """Return the positions of the keys if the queries are the first keys; further keys of a static cache get 0."""
    missing = key_length - positions.shape[1]
    return positions if missing <= 0 else functional.pad(positions, (0, missing))


def check_positions(positions: Positions, limit: int | None, scheme: str, ramped: bool = False) -> None:
    """Refuse positions that a scheme with a limit, or (`ramped`) the stock table during a ramp, does not have.

    Raises:
        PositionError: a position is at or beyond the limit; the message states the limit.
    """
    if limit is None:
        return
    if torch.compiler.is_compiling():
        torch._assert_async((positions.query < limit).all(), f"position past the longest position {limit}")
        return
    longest = positions.farthest + 1
    if longest > limit and ramped:
        raise PositionError(
            f"the text reaches position {longest}, but while the ramp to scheme {scheme!r} lasts, the old position "
            f"table is still read, and it has {limit} rows. Cut the text to {limit} tokens, or end the ramp: "
            "hf_posswap.ramp.set_ramp(model, None)."
        )
    if longest > limit:
        raise PositionError(
            f"the text reaches position {longest}, but scheme {scheme!r} has positions for {limit} tokens only. "
            f"Cut the text to {limit} tokens, or swap in a longer or unbounded scheme "
            f"(such as learned:length={longest}, sinusoidal, alibi)."
        )

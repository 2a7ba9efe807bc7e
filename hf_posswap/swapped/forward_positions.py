"""From the arguments of a base model's forward to `Positions`, once per forward."""

from typing import Any

import torch
from torch import Tensor

from hf_posswap.errors import PositionError
from hf_posswap.positions import Positions
from hf_posswap.swapped.cache_view import cache_among


def positions_of(
    arguments: dict[str, Any],
    length: int,
    device: torch.device,
    causal: bool,
    sizes: dict[int, tuple[int, int]] | None = None,
) -> Positions:
    """Return where the queries and keys of this forward stand.

    Positions come from `position_ids` if given, otherwise from a 2D `attention_mask` (so that padding on the left does
    not shift a text), otherwise from the number of cached tokens.

    Args:
        arguments: keyword arguments of the base model's forward.
        length: number of new tokens Lq.
        device: where the tokens are.
        causal: whether attention is causal.
        sizes: see `sizes_of_keys`; None without a cache.
    """
    cache, mask = cache_among(arguments.values()), arguments.get("attention_mask")
    if isinstance(mask, dict):
        # In families with several kinds of layers, generation hands over a mask for each: the longest tells most.
        tensors = [value for value in mask.values() if isinstance(value, Tensor)]
        mask = max(tensors, key=lambda value: value.shape[-1]) if tensors else None
    offset: int | Tensor = 0 if cache is None else cache.get_seq_length()
    if isinstance(offset, Tensor):
        offset = offset.clone()  # a static cache counts on in place, layer by layer
    # A text has the keys that a sliding window has dropped, too.
    key_length = max([count + first for count, first in sizes.values()]) if sizes else length
    cached = cache is not None and not (isinstance(offset, int) and offset == 0)
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > key_length:
        raise PositionError(
            f"the attention mask is for {mask.shape[1]} tokens, and there are {key_length}: {length} new ones and "
            "those in the cache. Give a mask of as many."
        )
    counted = _counted_positions(mask, key_length)
    key = torch.arange(key_length, device=device).unsqueeze(0) if counted is None else counted.to(device)
    expected = _from_offset(key, offset, length, key_length)
    # Where the mask hides tokens in the middle of a text, indices count them and positions do not.
    by_index = counted is None or not _has_holes(mask)
    given = arguments.get("position_ids")
    if given is None:
        return Positions(expected, key, offset, causal, by_index)
    given = (given.unsqueeze(0) if given.dim() == 1 else given).to(device)
    if not cached and mask is None:
        # Where position_ids skip, a new document begins and is masked from the others (`document_mask`).
        return Positions(given, _pad_keys(given, key_length), offset, causal)
    if isinstance(mask, Tensor) and mask.dim() == 4:
        seen = _seen_by_last_query(mask, key_length).to(device)
        if _equal_where_visible(given, _from_offset(seen, offset, length, key_length), None, cached):
            return Positions(given, seen, offset, causal)
    if _equal_where_visible(given, expected, mask, cached):
        return Positions(given, key, offset, causal, by_index)
    if cached:
        return Positions(given, key, offset, causal, by_index=None)
    return Positions(given, _pad_keys(given, key_length), offset, causal, by_index=False)


def check_given(arguments: dict[str, Any], batch: int, length: int) -> None:
    """Refuse position_ids that cannot be the tokens' positions.

    Raises:
        PositionError: they are no integers, or not of shape (n,), (1, n) or (B, n) for B texts of n new tokens.
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


def sizes_of_keys(arguments: dict[str, Any], length: int) -> dict[int, tuple[int, int]] | None:
    """Return, for each layer of the cache among the arguments, how many keys it will return and where they begin.

    A sliding window has dropped those before. None: there is no cache.
    """
    cache = cache_among(arguments.values())
    if cache is None:
        return None
    cache = getattr(cache, "self_attention_cache", cache)  # of a decoder with cross-attention
    without = [getattr(cache, name, None) for name in ("is_linear", "is_dummy")]  # layers that keep no keys
    skipped = {n for flags in without if isinstance(flags, list) for n, flag in enumerate(flags) if flag}
    layers = range(max(1, len(getattr(cache, "layers", ()))))
    return {layer: cache.get_mask_sizes(length, layer) for layer in layers if layer not in skipped}


def _counted_positions(mask: Any, key_length: int) -> Tensor | None:
    """Positions of all keys (B, Lk) counted along a 2D mask, or None if there is no padding to count around."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return _count(mask.long(), key_length)


def _has_holes(mask: Any) -> bool:
    """Whether a 2D mask hides tokens between visible ones; while a graph is traced, padding is all it may hide."""
    if torch.compiler.is_compiling():
        return False
    begins = torch.diff(mask.long(), prepend=torch.zeros_like(mask[:, :1]).long(), dim=1) == 1
    return bool((begins.sum(1) > 1).any())


def _seen_by_last_query(mask: Tensor, key_length: int) -> Tensor:
    """Positions of all keys (B, Lk) counted along what the last query may see in a 4D mask."""
    last = mask[:, 0, -1]
    visible = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min
    return _count(visible.long(), key_length)


def _count(visible: Tensor, key_length: int) -> Tensor:
    counted = (visible.cumsum(-1) - 1).clamp(min=0)
    missing = key_length - counted.shape[1]
    if missing <= 0:
        return counted[:, :key_length]
    # A static cache is longer than the text so far; its free places go on counting.
    ahead = counted[:, -1:] + torch.arange(1, missing + 1, device=visible.device)
    return torch.cat([counted, ahead], dim=1)


def _from_offset(key: Tensor, offset: int | Tensor, length: int, key_length: int) -> Tensor:
    """Positions of the queries: the keys' positions from the offset on."""
    if isinstance(offset, int):
        if offset + length <= key_length:
            return key[:, offset : offset + length]
        return key[:, -1:] + torch.arange(1, length + 1, device=key.device)
    index = (torch.arange(length, device=key.device) + offset.to(key.device)).expand(key.shape[0], -1)
    return key.gather(1, index)


def _pad_keys(positions: Tensor, key_length: int) -> Tensor:
    """Positions of the keys where the queries are the first keys; a longer static cache is masked there."""
    missing = key_length - positions.shape[1]
    return positions if missing <= 0 else torch.nn.functional.pad(positions, (0, missing))


def _equal_where_visible(given: Tensor, expected: Tensor, mask: Any, cached: bool) -> bool:
    """Whether given positions are the expected ones wherever a 2D mask shows them.

    Values cannot be looked at while a graph is being traced. With a cache transformers' own generation is then the
    caller, whose positions do follow the mask; without one the answer "no" is always right, only slower.
    """
    if torch.compiler.is_compiling():
        return cached
    same = given == expected
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= given.shape[1]:
        same = same | ~mask[:, -given.shape[1] :].bool().to(given.device)
    return bool(same.all())


def document_mask(model: Any, arguments: dict[str, Any], batch: int, length: int, causal: bool) -> Any:
    """Return the attention mask that keeps packed documents apart, in the form the model's backend takes, or None.

    Documents are packed if `position_ids` restart, no mask is given and nothing is cached. transformers masks them in
    causal models only as long as no cache is made, and never in encoders.
    """
    position_ids, cache = arguments.get("position_ids"), cache_among(arguments.values())
    if position_ids is None or arguments.get("attention_mask") is not None:
        return None
    if cache is not None and not (isinstance(cache.get_seq_length(), int) and cache.get_seq_length() == 0):
        return None
    position_ids = position_ids.unsqueeze(0) if position_ids.dim() == 1 else position_ids
    begins = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1) != 1
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return None
    return _make_document_mask(model, position_ids.expand(batch, -1), begins.cumsum(-1).expand(batch, -1), causal)


def _make_document_mask(model: Any, position_ids: Tensor, documents: Tensor, causal: bool) -> Any:
    from transformers.masking_utils import (
        create_bidirectional_mask,
        create_causal_mask,
        packed_sequence_mask_function,
    )

    embeds = torch.empty((*position_ids.shape, 0), dtype=model.dtype, device=position_ids.device)
    if causal:  # the fourth argument is the cache, whose name differs by release
        return create_causal_mask(model.config, embeds, None, None, position_ids=position_ids)
    together = packed_sequence_mask_function(documents)
    return create_bidirectional_mask(model.config, embeds, None, and_mask_function=together)


def check_positions(positions: Positions, limit: int | None, scheme: str, ramped: bool = False) -> None:
    """Refuse positions that a bounded scheme does not have, or the old table that a ramp still reads (`ramped`).

    Raises:
        PositionError: a position at or past the limit; names the limit.
    """
    if limit is None:
        return
    if torch.compiler.is_compiling():
        torch._assert_async((positions.query < limit).all(), f"position past the longest position {limit}")
        return
    longest = int(positions.query.max()) + 1
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

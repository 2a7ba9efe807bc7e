"""A layer's view of the cache, which passes new keys to the scheme before they are stored.

The cache is found among the arguments of the attention module by its type, because its name depends on the family and
the release of transformers: `past_key_values`, `cache` or `layer_past`. All methods but `update` are those of the
cache.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from hf_posswap.errors import PositionError

OnUpdate = Callable[[Any, Tensor, Any], Tensor]
"""Takes the cache, the new keys (B, Hkv, L, D) and the layer's index in the cache; returns the keys to store."""


class CacheView(Cache):
    """Replaces a cache in the forward of one attention module.

    Args:
        cache: the cache.
        on_update: see `OnUpdate`; called once for each update.
    """

    def __init__(self, cache: Any, on_update: OnUpdate) -> None:
        self._posswap_cache = cache
        self._posswap_on_update = on_update

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_posswap"):
            raise AttributeError(name)
        return getattr(self._posswap_cache, name)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Store values and new keys, after the scheme has transformed the keys; return all of them."""
        key_states = self._posswap_on_update(self._posswap_cache, key_states, layer_idx)
        return self._posswap_cache.update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, *args: Any, **kwargs: Any) -> Any:
        """Return the number of cached tokens."""
        return self._posswap_cache.get_seq_length(*args, **kwargs)

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> Any:
        """Return the length and the offset of a layer's keys."""
        return self._posswap_cache.get_mask_sizes(*args, **kwargs)


class PairView(EncoderDecoderCache):
    """Replaces the cache of a decoder with cross-attention; its part for self-attention is a `CacheView`.

    Args:
        cache: the pair of caches.
        on_update: see `OnUpdate`.
    """

    def __init__(self, cache: Any, on_update: OnUpdate) -> None:
        self.self_attention_cache = CacheView(cache.self_attention_cache, on_update)
        self.cross_attention_cache = cache.cross_attention_cache
        self.is_updated = cache.is_updated
        self._posswap_cache = cache

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_posswap"):
            raise AttributeError(name)
        return getattr(self._posswap_cache, name)


def view_of(cache: Any, on_update: OnUpdate) -> Any:
    """Return a view of a cache for a self-attention module."""
    kind = PairView if isinstance(cache, EncoderDecoderCache) else CacheView
    return kind(cache, on_update)


def cache_among(values: Any) -> Any:
    """Return the cache among the arguments of a forward, found by its type, or None."""
    return next((value for value in values if isinstance(value, Cache)), None)


def check_whole(cache: Any, sizes: Mapping[int, tuple[int, int]] | None, length: int) -> None:
    """Refuse a cache from which another tool evicted keys of some layers: the positions of the rest are unknown.

    Args:
        cache: the cache, or None.
        sizes: for each layer, the number of keys that it will return and the index of the first in the text; None: no
            cache.
        length: number of new tokens.

    Raises:
        PositionError: the layers have seen texts of different lengths, or report fewer keys than they have seen.
    """
    if not sizes or torch.compiler.is_compiling():  # values are not available while a graph is traced
        return
    cache = getattr(cache, "self_attention_cache", cache)  # the cache of a decoder with cross-attention has two parts
    first = next(iter(sizes))
    count = cache.get_seq_length(first)  # a static cache counts in a tensor, which may be on a device
    if isinstance(count, int) and len(set(sizes.values())) == 1 and sizes[first] == (count + length, 0):
        return  # all layers report whole texts of one length
    seen = {layer: cache.get_seq_length(layer) for layer in sizes}
    known = {layer: count for layer, count in seen.items() if isinstance(count, int) and count > 0}
    missing = [layer for layer, count in known.items() if sum(sizes[layer]) < count + length]
    if missing or len(set(known.values())) > 1:
        raise PositionError(
            f"the layers of the cache hold {sorted(set(known.values()))} tokens"
            + (f", of which layers {missing} will not return all" if missing else "")
            + ": keys were evicted by something else, so the positions of the others are unknown. Run without a cache, "
            "or with one of transformers' own."
        )


def cache_keyword(outputs: Mapping[str, Any]) -> str | None:
    """Return the name under which a model returns and accepts its cache; None if it returned none."""
    return next((name for name, value in outputs.items() if isinstance(value, Cache)), None)

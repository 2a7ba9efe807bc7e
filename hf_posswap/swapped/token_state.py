"""A scheme's values per token in the cache: extra channels of the keys.

Channels hold float32 values exactly: in half precision each value is split into three parts. The key heads share the
values evenly, because a cache stores the same number of channels for each of them. A cache that rounds keys, or that
has keys without these channels, is refused.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer, QuantizedLayer

from hf_posswap.attention.folding import split_parts
from hf_posswap.errors import UnsupportedError

PARTS = 3
"""Parts of a value in half precision, which hold at least 24 bits of it in bfloat16."""


ROUNDING = tuple(kind for kind in QuantizedLayer.__mro__ if issubclass(kind, DynamicLayer) and kind is not DynamicLayer)
"""Kinds of cache layers that round keys; the release decides which class the quantised layers have in common."""


def check_holds(cache: Any, layer_index: Any, keys: Tensor, scheme: str) -> None:
    """Refuse a cache that cannot hold a scheme's values beside a layer's keys.

    Args:
        cache: the cache.
        layer_index: index of the layer in the cache.
        keys: new keys with the values, (B, Hkv, L, D + channels).
        scheme: the scheme as error messages name it.

    Raises:
        UnsupportedError: the cache rounds keys, or has keys of the layer without the values.
    """
    layers = getattr(cache, "layers", ())
    layer = layers[layer_index] if isinstance(layer_index, int) and layer_index < len(layers) else None
    if isinstance(layer, ROUNDING):
        raise UnsupportedError(
            f"{scheme} stores values for each token beside the keys, and a {type(layer).__name__} would round "
            "them to few bits. Use a cache that keeps what it is given: cache_implementation='dynamic' or 'static'."
        )
    held = getattr(layer, "keys", None)
    if isinstance(held, Tensor) and held.dim() == 4 and held.shape[-1] != keys.shape[-1]:
        raise UnsupportedError(
            f"{scheme} stores {keys.shape[-1]} numbers for each token and head, and the cache has keys of "
            f"{held.shape[-1]}: they were stored without the scheme's values (by another model, in another dtype, or "
            "as the prefix of an adapter), or the cache was allocated before its first use (prefill_chunk_size). Start "
            "with an empty cache."
        )


def hidden_states_among(values: Iterable[Any]) -> Tensor | None:
    """Return the hidden states (B, L, hidden size) among the arguments of an attention module, found by their form.

    The stock module's first floating tensor with three dimensions is its input in every family.
    """
    for value in values:
        if isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point():
            return value
    return None


def _parts(dtype: torch.dtype) -> int:
    return PARTS if dtype.itemsize < 4 else 1


def with_state(k: Tensor, state: Tensor) -> Tensor:
    """Return new keys (B, Hkv, L, D) with a state (B, S, L), float32, in channels after the D of the keys."""
    values = torch.cat(split_parts(state, k.dtype, _parts(k.dtype)), dim=1)
    per_head = -(-values.shape[1] // k.shape[1])
    values = F.pad(values, (0, 0, 0, per_head * k.shape[1] - values.shape[1]))
    channels = values.unflatten(1, (k.shape[1], per_head)).transpose(2, 3)
    return torch.cat((k, channels.expand(k.shape[0], -1, -1, -1)), dim=-1)


def without_state(k: Tensor, head_dim: int, size: int) -> tuple[Tensor, Tensor]:
    """Return all keys (B, Hkv, L, D) and their state (B, S, L), float32: the inverse of `with_state`.

    Args:
        k: keys of the cache.
        head_dim: D.
        size: S.
    """
    parts = _parts(k.dtype)
    values = k[..., head_dim:].transpose(2, 3).flatten(1, 2)[:, : size * parts]
    return k[..., :head_dim], values.float().unflatten(1, (parts, size)).sum(1)

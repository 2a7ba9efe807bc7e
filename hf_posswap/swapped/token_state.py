"""A scheme's values per token in the cache: extra channels of the keys.

Channels hold float32 values exactly: in half precision each value is split into three parts. The key heads share the
values evenly, because a cache stores the same number of channels for each of them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.attention.folding import split_parts

PARTS = 3
"""Parts of a value in half precision, which hold at least 24 bits of it in bfloat16."""


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

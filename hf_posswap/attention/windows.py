"""Sliding windows: restricts the mask of an attention call to keys near each query, in the form of the backend."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask

from hf_posswap.attention.dispatch import BACKENDS, FLASH
from hf_posswap.errors import BackendError


class SlidingWindow(NamedTuple):
    """A sliding window: a query i sees the keys j with |i − j| < size, where i and j are indices in the text.

    Attributes:
        size: size W; a query sees itself and W − 1 tokens before it and, in an encoder, W − 1 tokens after it.
        offset: index of the first query among the keys; with a static cache a 0-dim tensor.
        causal: whether keys after the query are hidden if there is no mask.
    """

    size: int
    offset: int | Tensor
    causal: bool

    def shows(self, query: Any, key: Any) -> Any:
        """Return whether a query sees a key; indices start at the call's first query and first key."""
        distance = query + self.offset - key
        return (distance < self.size) & (distance > -self.size)


def check_windows(backend: str) -> None:
    """Refuse a sliding window for an unknown backend, because the form of its masks is unknown.

    Raises:
        BackendError: hf_posswap does not know the backend.
    """
    if backend not in BACKENDS and not backend.startswith(FLASH):
        raise BackendError(
            f"backend {backend!r} cannot be given a sliding window. Backends that work: {', '.join(BACKENDS)}. "
            'Choose one with attn_implementation="sdpa" or model.set_attn_implementation("sdpa").'
        )


def windowed(mask: Any, window: SlidingWindow, q: Tensor, key_length: int, backend: str) -> Any:
    """Return a mask that also hides keys outside a window; the given mask if all keys fit into the window.

    Args:
        mask: the mask that transformers made for the backend: None, boolean or additive (B|1, 1|H, Lq|1, Lk), or a
            BlockMask.
        window: the window.
        q: queries (B, H, Lq, D).
        key_length: number of keys Lk.
        backend: "eager", "sdpa" or "flex_attention".
    """
    if not torch.compiler.is_compiling() and key_length <= window.size:
        return mask
    hidden_future = mask is None and window.causal

    def shows(batch: Any, head: Any, query: Any, key: Any) -> Any:
        seen = window.shows(query, key)
        return seen & (query + window.offset >= key) if hidden_future else seen

    if isinstance(mask, BlockMask) or (mask is None and backend == "flex_attention"):
        both = shows if mask is None else and_masks(mask.mask_mod, shows)
        batch, heads = (None, None) if mask is None else mask.shape[:2]
        return create_block_mask(both, batch, heads, q.shape[2], key_length, device=str(q.device))
    query = torch.arange(q.shape[2], device=q.device)[:, None]
    seen = shows(None, None, query, torch.arange(key_length, device=q.device))[None, None]
    if mask is None:
        if backend == "sdpa":
            return seen
        return torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, torch.finfo(q.dtype).min)
    mask = mask[..., :key_length]
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)

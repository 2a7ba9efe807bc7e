"""The tensors of one attention call, and helper functions for all backends."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hf_posswap.common.biases import Bias

Mix = Callable[[Tensor, int], Tensor]
"""Maps the weights (B, H, n, Lk) of the queries start…start+n−1 to a summand of their context (B, H, n, D)."""


LOWER_THAN_SCORES = -1000.0
"""Values of an additive mask below this one hide a key as well as the minimum does: -10000 is in wide use."""


@dataclass
class AttentionInputs:
    """The inputs of one attention call, after projection, transformation and cache.

    Attributes:
        q: queries (B, H, Lq, D).
        k: keys (B, Hkv, Lk, D).
        v: values (B, Hkv, Lk, D).
        mask: the mask that transformers made for the backend: None, a boolean tensor (True: visible) or an additive
            tensor (B|1, 1|H, Lq, Lk), or FlexAttention's BlockMask.
        causal: whether the module is causal. Without a mask, each query then sees the keys up to its own index.
        scaling: factor on q·k.
        dropout: probability of dropping an attention weight.
        shared: values that all layers of one forward share, see `once`.
        softcap: c in c·tanh(s/c), which is applied to the scaled scores before the bias; None: no softcap.
        sinks: one score per head (H,) that takes part in the softmax and has no key; None: no sinks.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Any
    causal: bool
    scaling: float
    dropout: float = 0.0
    shared: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    softcap: float | None = None
    sinks: Tensor | None = None

    def once(self, what: str, about: tuple[object, ...], make: Callable[[], Any]) -> Any:
        """Return `make()`, computed once per forward for the objects in `about`, which all layers share.

        Do not use it for values with a gradient: under gradient checkpointing, such a value belongs to the graph of one
        layer, and later layers cannot use it.
        """
        key = (what, *map(id, about))
        if key not in self.shared:
            self.shared[key] = (make(), about)  # keeps the objects alive, so that no other object gets their ids
        return self.shared[key][0]

    @property
    def reshapes_scores(self) -> bool:
        """Whether there is a softcap or sinks, which fused kernels without a score function do not support."""
        return self.softcap is not None or self.sinks is not None

    @property
    def query_length(self) -> int:
        """Lq, the number of queries."""
        return self.q.shape[2]

    @property
    def key_length(self) -> int:
        """Lk, the number of keys."""
        return self.k.shape[2]

    @property
    def implicit_causal(self) -> bool:
        """Whether attention is causal without a mask; query i then sees the keys 0…i, and no keys are cached."""
        return self.mask is None and self.causal and self.query_length > 1


def bias_dtype(q: Tensor) -> torch.dtype:
    """Return the dtype of bias rows for a fused kernel: float64 for float64 queries, otherwise float32.

    With a float32 mask and float64 queries, torch computes wrong values without an error.
    """
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def in_float32(inputs: AttentionInputs) -> AttentionInputs:
    """Return a call with queries, keys, values and an additive mask in float32."""
    q, k, v, mask = inputs.q.float(), inputs.k.float(), inputs.v.float(), inputs.mask
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        mask = additive_mask(mask)
    return replace(inputs, q=q, k=k, v=v, mask=mask)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat the heads of keys or values so that there is one per query head (grouped-query attention)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def additive_mask(mask: Tensor) -> Tensor:
    """Return a boolean or additive mask as an additive float32 mask; hidden entries are the float32 minimum, not −inf.

    With a finite minimum, a row without visible keys (a padding query) does not become NaN, and bias + minimum does not
    overflow.
    """
    lowest = torch.finfo(torch.float32).min
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)
    hidden = mask <= torch.finfo(mask.dtype).min
    return mask.float().masked_fill(hidden, lowest)


def visible_keys(inputs: AttentionInputs, start: int, stop: int) -> Tensor | None:
    """Return which keys the queries start…stop−1 see, boolean, (B|1, 1|H, stop − start|1, Lk); None: all keys."""
    if inputs.implicit_causal:
        index = torch.arange(start, stop, device=inputs.q.device)[:, None]
        return (torch.arange(inputs.key_length, device=inputs.q.device) <= index)[None, None]
    if inputs.mask is None:
        return None
    mask: Tensor = inputs.mask[..., : inputs.key_length]
    if mask.shape[2] > 1:  # otherwise all queries have the same row
        mask = mask[:, :, start:stop]
    return mask if mask.dtype == torch.bool else mask > LOWER_THAN_SCORES


def seen_rows(inputs: AttentionInputs, bias: Bias, start: int, stop: int) -> Tensor:
    """Return the bias rows of the queries start…stop−1, float32, broadcastable to (B, H, stop − start, Lk)."""
    return bias.seen_rows(start, stop, visible_keys(inputs, start, stop) if bias.reads_mask else None)


def masked_rows(inputs: AttentionInputs, rows: Tensor, start: int, stop: int) -> Tensor:
    """Return bias rows with the mask of the queries start…stop−1 applied, float32, (B|1, H, stop − start, Lk).

    Args:
        inputs: the attention call.
        rows: float32 bias rows.
        start: first query.
        stop: one past the last query.
    """
    lowest = torch.finfo(torch.float32).min
    if inputs.implicit_causal:
        index = torch.arange(start, stop, device=rows.device)[:, None]
        return rows.masked_fill(torch.arange(inputs.key_length, device=rows.device) > index, lowest)
    if inputs.mask is None:
        return rows
    mask = inputs.mask[..., : inputs.key_length]
    if mask.shape[2] > 1:  # otherwise all queries have the same row
        mask = mask[:, :, start:stop]
    if mask.dtype == torch.bool:
        return torch.where(mask, rows, lowest)
    hidden = mask <= torch.finfo(mask.dtype).min
    return torch.where(hidden, lowest, rows + mask.float())

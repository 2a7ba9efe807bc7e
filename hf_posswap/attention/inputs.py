"""The tensors of one attention call, and small helpers that every backend needs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Mix = Callable[[Tensor, int], Tensor]
"""Maps the weights (B, H, n, Lk) of the queries start…start+n−1 to what is added to their output (B, H, n, d)."""


@dataclass
class AttentionInputs:
    """One attention call after projection, transformation and cache.

    Attributes:
        q: queries (B, H, Lq, d).
        k: keys (B, Hkv, Lk, d).
        v: values (B, Hkv, Lk, d).
        mask: what transformers made for the backend: None, a boolean (True: may be seen) or additive tensor
            (B|1, 1|H, Lq, Lk), or FlexAttention's BlockMask.
        causal: whether the module is causal. Without a mask, queries then see the keys up to their own index.
        scaling: factor on q·k.
        dropout: probability of dropping an attention weight.
        shared: what the layers of one forward share, see `once`.
        softcap: c of c·tanh(s/c), to which scaled scores are squashed before the bias; None: they are not.
        sinks: a score per head (H,) that takes part in the softmax and has no key; None: there is none.
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
        """Return what `make` gives, made once per forward for objects that all its layers see.

        Never for what has a gradient: a layer that is checkpointed would keep it from the layers after it.
        """
        key = (what, *map(id, about))
        if key not in self.shared:
            self.shared[key] = (make(), about)  # the objects stay alive, so that their ids stay their own
        return self.shared[key][0]

    @property
    def reshapes_scores(self) -> bool:
        """Whether scores go through more than a softmax, which no fused kernel without a score function does."""
        return self.softcap is not None or self.sinks is not None

    @property
    def query_length(self) -> int:
        """Lq."""
        return self.q.shape[2]

    @property
    def key_length(self) -> int:
        """Lk."""
        return self.k.shape[2]

    @property
    def implicit_causal(self) -> bool:
        """Whether causality is meant but not in the mask; query i then sees the keys 0…i (no cached ones)."""
        return self.mask is None and self.causal and self.query_length > 1


def bias_dtype(q: Tensor) -> torch.dtype:
    """Return the dtype in which bias rows reach a fused kernel: float32, and float64 for float64 queries.

    torch takes a float32 mask with float64 queries without a word and computes something else.
    """
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat key or value heads so that there is one per query head (grouped-query attention)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def additive_mask(mask: Tensor) -> Tensor:
    """Return a boolean or additive mask as additive float32, hidden entries at the float32 minimum, never −inf.

    A finite minimum keeps a row that is hidden altogether (a padding query) from becoming NaN, and bias + minimum from
    overflowing.
    """
    lowest = torch.finfo(torch.float32).min
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)
    hidden = mask <= torch.finfo(mask.dtype).min
    return mask.float().masked_fill(hidden, lowest)


def masked_rows(inputs: AttentionInputs, rows: Tensor, start: int, stop: int) -> Tensor:
    """Return bias rows with the mask of the queries start…stop−1 on top, float32, (B|1, H, stop − start, Lk).

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
    if mask.shape[2] > 1:  # otherwise one row serves all queries
        mask = mask[:, :, start:stop]
    if mask.dtype == torch.bool:
        return torch.where(mask, rows, lowest)
    hidden = mask <= torch.finfo(mask.dtype).min
    return torch.where(hidden, lowest, rows + mask.float())

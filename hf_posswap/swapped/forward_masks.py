"""The attention mask of a forward: checks, conversion to the backend's form, and masks for packed documents."""

from typing import Any

import torch
from torch import Tensor

from hf_posswap.attention.inputs import LOWER_THAN_SCORES
from hf_posswap.common.positions import Positions
from hf_posswap.errors import BackendError, PositionError


def masks_among(mask: Any) -> list[Tensor]:
    """Return the tensors of an `attention_mask`: itself, or those for kinds of layers; block masks are left out."""
    return [value for value in (mask.values() if isinstance(mask, dict) else (mask,)) if isinstance(value, Tensor)]


def readable_mask(mask: Any, backend: str, dtype: torch.dtype) -> Any:
    """Return an `attention_mask` in the form that a backend requires; transformers passes 4D masks on unchanged.

    Eager attention and FlexAttention add a 4D mask to the scores, so that a boolean mask would hide nothing.

    Args:
        mask: the mask as given: 2D, 4D, a dictionary of masks for kinds of layers, FlexAttention's block mask, or None.
        backend: the model's attention backend.
        dtype: dtype of the hidden states.

    Raises:
        PositionError: the mask has other dimensions, or is a 4D mask of integers, which is ambiguous.
        BackendError: a 4D mask for flash attention, which supports none.
    """
    if isinstance(mask, dict):
        return {kind: readable_mask(value, backend, dtype) for kind, value in mask.items()}
    if not isinstance(mask, Tensor) or mask.dim() == 2:
        return mask
    if mask.dim() != 4:
        raise PositionError(
            f"the attention mask has {mask.dim()} dimensions, shape {tuple(mask.shape)}. It must be (batch, keys), "
            "true where there is a token, or (batch, 1 or heads, queries, keys)."
        )
    if backend.startswith("flash_attention"):
        raise BackendError(
            f"backend {backend!r} reads no 4D attention mask. Backends that work: eager, sdpa, flex_attention. Choose "
            'one with model.set_attn_implementation("sdpa"), or give a 2D mask.'
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise PositionError(
            f"a 4D attention mask of {mask.dtype} is ambiguous: it may mark the visible keys, or be added to the "
            "scores. Pass it as mask.bool() (true: seen) or as floating point (added)."
        )
    if mask.dtype == torch.bool and backend != "sdpa":
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask


def shown_entries(mask: Tensor) -> Tensor:
    """Return which entries of a mask are shown, boolean; in an additive 4D mask, those above the dtype's minimum."""
    if mask.dtype == torch.bool or mask.dim() == 2:
        return mask.bool()
    return mask > torch.finfo(mask.dtype).min


def check_no_future(mask: Any, offset: int | Tensor, sizes: dict[int, tuple[int, int]] | None, scheme: str) -> None:
    """Refuse 4D masks that show future keys in a causal model: a causal bias has no value for them.

    Args:
        mask: the forward's `attention_mask`.
        offset: number of cached tokens.
        sizes: see `sizes_of_keys`.
        scheme: name of the scheme, which adds a bias.

    Raises:
        PositionError: a mask shows future keys. A traced graph raises torch's RuntimeError with the same message when
            it runs.
    """
    for part in masks_among(mask):
        if part.dim() != 4 or part.is_meta:
            continue
        before = [first for count, first in (sizes or {}).values() if count == part.shape[-1]]
        key = torch.arange(part.shape[-1], device=part.device) + min(before, default=0)
        query = torch.arange(part.shape[-2], device=part.device) + offset
        shown = part if part.dtype == torch.bool else part > LOWER_THAN_SCORES
        hidden = ~(shown & (key > query[:, None])).any()
        words = (
            f"the 4D attention mask of a causal model shows a query keys that come after it, where scheme {scheme!r} "
            "has no value. Give a causal mask, swap the scheme into the model made bidirectional (config.is_causal = "
            "False), or choose one without a bias, such as rope."
        )
        if torch.compiler.is_compiling():
            torch._assert_async(hidden, words)
        elif not bool(hidden):
            raise PositionError(words)


def document_starts(position_ids: Tensor) -> Tensor:
    """Return which tokens begin another document than the token before: positions (B|1, L) do not go on there."""
    return torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1) != 1


def document_mask(model: Any, arguments: dict[str, Any], cache: Any, positions: Positions, batch: int) -> Any:
    """Return an attention mask that separates packed documents, in the form that the model's backend requires, or None.

    Documents are packed if `position_ids` restart, no mask is given and nothing is cached. transformers separates them
    only in causal models and only if no cache is created.
    """
    position_ids = arguments.get("position_ids")
    if position_ids is None or arguments.get("attention_mask") is not None:
        return None
    if cache is not None and not (isinstance(cache.get_seq_length(), int) and cache.get_seq_length() == 0):
        return None
    position_ids = position_ids.unsqueeze(0) if position_ids.dim() == 1 else position_ids
    if not torch.compiler.is_compiling() and not positions.read["packed"]:
        return None
    documents = document_starts(position_ids).cumsum(-1).expand(batch, -1)
    return _make_document_mask(model, position_ids.expand(batch, -1), documents, positions.causal)


def _make_document_mask(model: Any, position_ids: Tensor, documents: Tensor, causal: bool) -> Any:
    from transformers.masking_utils import (
        create_bidirectional_mask,
        create_causal_mask,
        packed_sequence_mask_function,
    )

    embeds = torch.empty((*position_ids.shape, 0), dtype=model.dtype, device=position_ids.device)
    if causal:  # the fourth argument is the cache; its name depends on the release
        return create_causal_mask(model.config, embeds, None, None, position_ids=position_ids)
    together = packed_sequence_mask_function(documents)
    return create_bidirectional_mask(model.config, embeds, None, and_mask_function=together)

"""Attention with torch's FlexAttention: a `score_mod`, compiled into the kernel, adds the bias."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from hf_posswap.attention.inputs import AttentionInputs, additive_mask, seen_rows
from hf_posswap.common.biases import Bias, DenseBias, LinearBias, RelativeBias, SeparableBias
from hf_posswap.common.content_biases import ClippedContentBias
from hf_posswap.common.summed_bias import SummedBias
from hf_posswap.errors import BackendError

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

FLEX_BIASES: tuple[type[Bias], ...] = (
    LinearBias,
    RelativeBias,
    SeparableBias,
    DenseBias,
    ClippedContentBias,
    SummedBias,
)
"""Kinds of bias that a score_mod can read. Transformer-XL's needs the products of all queries with all distances."""


@cache
def compiled_flex_attention() -> Callable[..., Any]:
    """Return FlexAttention compiled, once per process; uncompiled FlexAttention materialises all scores."""
    return torch.compile(flex_attention)


def score_modification(bias: Bias, inputs: AttentionInputs) -> ScoreMod:
    """Return the score_mod that adds `bias`.

    Raises:
        BackendError: FlexAttention cannot compute this kind of bias.
    """
    device = inputs.q.device
    if isinstance(bias, LinearBias):
        bias = bias.as_relative()
    if isinstance(bias, RelativeBias):
        values, last = bias.values.to(device), bias.key_length - 1
        return lambda score, b, h, i, j: score + values[h, i - j + last]
    if isinstance(bias, SummedBias) and inputs.causal and not bias.reads_mask:
        return _summed(bias, inputs)
    if isinstance(bias, SeparableBias | DenseBias | SummedBias):
        rows = seen_rows(inputs, bias, 0, inputs.query_length).to(device)
        rows = rows.expand(inputs.q.shape[0], inputs.q.shape[1], -1, -1)
        return lambda score, b, h, i, j: score + rows[b, h, i, j]
    if isinstance(bias, ClippedContentBias):
        scores = bias.scores().to(device)
        index = bias.index_rows(0, inputs.query_length).to(device).expand(inputs.q.shape[0], -1, -1)
        return lambda score, b, h, i, j: score + scores[b, h, i, index[b, i, j]]
    raise BackendError(
        f"backend 'flex_attention' cannot carry {type(bias).__name__}: it would need each query's product with every "
        "distance at once. Backends that work: eager, sdpa."
    )


def _summed(bias: SummedBias, inputs: AttentionInputs) -> ScoreMod:
    batch, device = inputs.q.shape[0], inputs.q.device
    sums = bias.sums().to(device).expand(batch, -1, -1)
    if bias.factors is None:
        return lambda score, b, h, i, j: score + sums[b, h, j]
    factors = bias.factors.to(device).expand(batch, -1, -1)
    return lambda score, b, h, i, j: score + factors[b, h, i] * sums[b, h, j]


def flex_bias_attention(inputs: AttentionInputs, bias: Bias) -> Tensor:
    """Return the context (B, H, Lq, D) of attention with `bias`.

    Raises:
        BackendError: FlexAttention does not support the kind of bias, the dropout, the sinks or the gradient here.
    """
    if inputs.dropout > 0:
        raise BackendError(
            f"backend 'flex_attention' has no attention dropout (here {inputs.dropout}). Set the model's attention "
            "dropout to 0, call model.eval(), or take a backend that works: eager, sdpa."
        )
    if inputs.q.device.type == "cpu" and _learns(inputs, bias):
        raise BackendError(
            "backend 'flex_attention' has no backward pass on CPU. Backends that work: eager, sdpa; or torch.no_grad()."
        )
    if inputs.sinks is not None:
        raise BackendError(
            "backend 'flex_attention' does not run a bias beside attention sinks. Backends that work: eager, sdpa."
        )
    modify = _with_softcap(score_modification(bias, inputs), inputs.softcap)
    block_mask = inputs.mask if isinstance(inputs.mask, BlockMask) else None
    if isinstance(inputs.mask, Tensor):
        block_mask = _block_mask_of(inputs)
        if block_mask is None or inputs.mask.dtype != torch.bool:
            modify = _with_mask(modify, additive_mask(inputs.mask))
    elif inputs.implicit_causal:
        block_mask = causal_block_mask(inputs.query_length, inputs.key_length, inputs.q.device)
    function: Any = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention()
    return function(
        inputs.q.contiguous(),
        inputs.k.contiguous(),
        inputs.v.contiguous(),
        score_mod=modify,
        block_mask=block_mask,
        scale=inputs.scaling,
        enable_gqa=inputs.q.shape[1] != inputs.k.shape[1],
    )


def _learns(inputs: AttentionInputs, bias: Bias) -> bool:
    """Return whether an input of attention or a tensor of the bias needs a gradient."""
    tensors = (inputs.q, inputs.k, inputs.v, inputs.mask, *vars(bias).values())
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)


def _with_softcap(modify: ScoreMod, softcap: float | None) -> ScoreMod:
    """Return a score_mod that applies the softcap and then `modify`."""
    if softcap is None:
        return modify
    return lambda score, b, h, i, j: modify(torch.tanh(score / softcap) * softcap, b, h, i, j)


def _with_mask(modify: ScoreMod, mask: Tensor) -> ScoreMod:
    batches, heads = mask.shape[0] > 1, mask.shape[1] > 1
    zero = torch.zeros((), dtype=torch.int64, device=mask.device)

    def modify_and_mask(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return modify(score, b, h, i, j) + mask[b if batches else zero, h if heads else zero, i, j]

    return modify_and_mask


def _block_mask_of(inputs: AttentionInputs) -> BlockMask | None:
    """Return the block mask of what a mask for all heads shows, created once per forward; None for any other mask.

    No value of the mask is read here: on a GPU, the kernel that creates the block mask reads it.
    """
    if torch.compiler.is_compiling() or inputs.mask.shape[1] != 1:
        return None
    block_mask: BlockMask | None = inputs.once("block mask", (inputs.mask,), lambda: _make_block_mask(inputs))
    return block_mask


@torch.no_grad()
def _make_block_mask(inputs: AttentionInputs) -> BlockMask:
    mask = inputs.mask[:, 0, :, : inputs.key_length].expand(-1, inputs.query_length, -1)
    shown = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    return _creator(shown.device)(
        lambda b, h, i, j: shown[b, i, j],
        shown.shape[0],
        None,
        inputs.query_length,
        inputs.key_length,
        device=str(shown.device),
    )


@lru_cache(maxsize=8)
def causal_block_mask(query_length: int, key_length: int, device: torch.device) -> BlockMask:
    """Return the block mask of causal attention without cached keys."""
    return _creator(device)(lambda b, h, i, j: i >= j, None, None, query_length, key_length, device=str(device))


def _creator(device: torch.device) -> Callable[..., BlockMask]:
    # The compiled function creates the mask block by block; the uncompiled one creates a dense mask first.
    return torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask

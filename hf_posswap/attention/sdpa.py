"""Attention with torch's fused `scaled_dot_product_attention`; with a bias, in blocks of queries.

No tensor of H × Lq × Lk is created: a `RelativeBias` is a strided view, and any other bias is materialised for one
block of queries at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.attention.eager import eager_block
from hf_posswap.attention.inputs import AttentionInputs, Mix, bias_dtype, masked_rows, repeat_heads, seen_rows
from hf_posswap.attention.visibility import learns
from hf_posswap.common.biases import Bias, LinearBias, RelativeBias

QUERY_BLOCK = 256
"""Queries per block: the fastest of 64…L for a strided bias on a CPU, measured between 512 and 4096 tokens."""
BLOCK_BYTES = 64 * 2**20
"""Largest size in bytes of a materialised block of bias rows."""


def query_blocks(inputs: AttentionInputs, materialised: bool) -> list[tuple[int, int]]:
    """Return (start, stop) of the blocks of queries.

    While a graph with symbolic lengths is traced, there is one block: several blocks would specialise the graph to one
    length.
    """
    length = inputs.query_length
    sizes = (length, inputs.q.shape[0], inputs.key_length) if materialised else (length,)
    if not _numbers(sizes):
        return [(0, length)]
    step = QUERY_BLOCK
    if materialised:
        row_bytes = 4 * inputs.q.shape[0] * inputs.q.shape[1] * inputs.key_length
        step = max(1, min(QUERY_BLOCK, BLOCK_BYTES // row_bytes))
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _numbers(sizes: Sequence[int]) -> bool:
    """Return whether sizes are numbers, and not symbols of a graph that is being traced."""
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(size) for size in sizes)


def plain_attention(inputs: AttentionInputs) -> Tensor:
    """Return the context (B, H, Lq, D) of attention without a bias."""
    k, v, causal = inputs.k, inputs.v, False
    if inputs.implicit_causal:  # a symbol while a graph is traced; torch's function takes a bool
        causal = True
        k, v = k[:, :, : inputs.query_length], v[:, :, : inputs.query_length]
    mask = inputs.mask if inputs.mask is None else inputs.mask[..., : inputs.key_length]
    return F.scaled_dot_product_attention(
        inputs.q,
        repeat_heads(k, inputs.q.shape[1]),
        repeat_heads(v, inputs.q.shape[1]),
        attn_mask=mask,
        dropout_p=inputs.dropout,
        is_causal=causal,
        scale=inputs.scaling,
    )


def reversed_values(inputs: AttentionInputs, bias: RelativeBias) -> Tensor:
    """Return the vector (H, Lq + Lk − 1) of the strided view of a `RelativeBias`, see `RelativeBias.flipped_rows`.

    If attention is causal without a mask, the values of distances below 0 are −inf.
    """
    values = bias.values.to(inputs.q.device, bias_dtype(inputs.q))
    if inputs.implicit_causal:
        future = torch.arange(values.shape[-1], device=values.device) < inputs.key_length - 1
        values = values.masked_fill(future, float("-inf"))
    return values.flip(-1)


def relative_attention(inputs: AttentionInputs, bias: RelativeBias) -> Tensor:
    """Return the context of attention with a `RelativeBias` and no explicit mask; the bias is a strided view.

    The queries of a block are in reverse order, see `RelativeBias.flipped_rows`. In causal attention the values of
    Δ < 0 are −inf, which replaces the mask, and keys after the block's last query are not read.
    """
    source = reversed_values(inputs, bias)
    heads = inputs.q.shape[1]
    k, v = repeat_heads(inputs.k, heads), repeat_heads(inputs.v, heads)
    blocks = []
    for start, stop in query_blocks(inputs, materialised=False):
        seen = stop if inputs.implicit_causal else inputs.key_length
        rows = _as_constant(bias.flipped_rows(start, stop, source)[:, :, :seen])
        context = F.scaled_dot_product_attention(
            inputs.q[:, :, start:stop].flip(2),
            k[:, :, :seen],
            v[:, :, :seen],
            attn_mask=rows.unsqueeze(0).expand(inputs.q.shape[0], -1, -1, -1),
            dropout_p=inputs.dropout,
            scale=inputs.scaling,
        )
        blocks.append(context.flip(2))
    return torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0]


def single_query_attention(inputs: AttentionInputs, bias: Bias) -> Tensor:
    """Return the context (B, H, 1, D) of one query; the bias is one row, which other layers find by `known_row`."""
    row = known_row(inputs.shared, inputs.q, inputs.k, bias, inputs.mask)
    if row is None:
        row = _single_row(inputs, bias)
        if _is_shared(bias, inputs.mask):
            key = _row_key(inputs.q, inputs.k, bias, inputs.mask)
            inputs.shared[key] = row, bias, inputs.mask  # kept alive, so that their ids stay unique
    return attend_to_row(inputs.q, inputs.k, inputs.v, row, inputs.scaling, inputs.dropout).transpose(1, 2)


def known_row(shared: dict[Any, Any], q: Tensor, k: Tensor, bias: Bias, mask: Any) -> Tensor | None:
    """Return the row with which an earlier layer called `single_query_attention` for the same bias and mask, or None.

    Args:
        shared: values that all layers of the forward share.
        q: query, (B, H, 1, D).
        k: keys, (B, Hkv, Lk, D).
        bias: the layer's bias.
        mask: the layer's mask.
    """
    if torch.compiler.is_compiling() or not shared:
        return None
    known = shared.get(_row_key(q, k, bias, mask))
    if known is None or (torch.is_grad_enabled() and not _is_shared(bias, mask)):
        return None
    row: Tensor = known[0]
    return row


def _row_key(q: Tensor, k: Tensor, bias: Bias, mask: Any) -> tuple[Any, ...]:
    return "row", id(bias), id(mask), q.shape, k.shape, q.dtype


def attend_to_row(q: Tensor, k: Tensor, v: Tensor, row: Tensor, scaling: float, dropout: float = 0.0) -> Tensor:
    """Return the context (B, 1, H, D) of one query, given its row of the bias.

    Query heads that share a key head become the queries of that head, so keys and values are not repeated.
    """
    batch, heads, _, dim = q.shape
    key_heads = k.shape[1]
    if heads != key_heads:
        q = q.view(batch, key_heads, heads // key_heads, dim)
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=row, dropout_p=dropout, scale=scaling)
    return context.reshape(batch, 1, heads, -1)


def _single_row(inputs: AttentionInputs, bias: Bias) -> Tensor:
    """Return a row of the bias, (B, Hkv, H / Hkv, Lk): query heads that share a key head are its queries."""
    batch, heads = inputs.q.shape[:2]
    rows = masked_rows(inputs, seen_rows(inputs, bias, 0, 1).to(inputs.q.device, bias_dtype(inputs.q)), 0, 1)
    rows = rows.expand(-1, heads, -1, -1).contiguous()
    rows = _rounded(rows, inputs.q.dtype) if inputs.q.is_cuda else rows
    key_heads = inputs.k.shape[1]
    return rows.view(rows.shape[0], key_heads, heads // key_heads, -1).expand(batch, -1, -1, -1)


def _is_shared(bias: Bias, mask: Any) -> bool:
    """Return whether layers may share a row of the bias: it is relative, and neither it nor the mask learns."""
    if torch.compiler.is_compiling() or not isinstance(bias, LinearBias | RelativeBias):
        return False
    if not torch.is_grad_enabled():
        return True
    values = bias.slopes if isinstance(bias, LinearBias) else bias.values
    return not (values.requires_grad or (isinstance(mask, Tensor) and learns(mask)))


def blockwise_attention(inputs: AttentionInputs, bias: Bias) -> Tensor:
    """Return the context of attention with any bias and mask; materialise the bias of one block at a time."""
    heads = inputs.q.shape[1]
    k, v = repeat_heads(inputs.k, heads), repeat_heads(inputs.v, heads)
    blocks = []
    for start, stop in query_blocks(inputs, materialised=True):
        rows = seen_rows(inputs, bias, start, stop).to(inputs.q.device, bias_dtype(inputs.q))
        rows = _as_constant(masked_rows(inputs, rows, start, stop))
        context = F.scaled_dot_product_attention(
            inputs.q[:, :, start:stop],
            k,
            v,
            attn_mask=_rounded(rows, inputs.q.dtype) if inputs.q.is_cuda else rows,
            dropout_p=inputs.dropout,
            scale=inputs.scaling,
        )
        blocks.append(context)
    return torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0]


def mixed_attention(inputs: AttentionInputs, bias: Bias | None, mix: Mix | None) -> Tensor:
    """Return the context with a value side, which needs the weights: eager attention in blocks of queries."""
    blocks = query_blocks(inputs, materialised=True)
    return torch.cat([eager_block(inputs, bias, mix, start, stop)[0] for start, stop in blocks], dim=2)


def _as_constant(rows: Tensor) -> Tensor:
    """Return bias rows, detached if gradients are disabled.

    This is necessary for exported graphs. A graph exported without gradients is traced again with gradients during the
    conversion to ONNX. Without `detach`, torch would then select a kernel whose output has another memory layout.
    """
    return rows if torch.is_grad_enabled() else rows.detach()


def _rounded(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return bias rows in the queries' dtype, as CUDA kernels require.

    Each row is shifted so that its maximum is 0, which does not change the softmax; rounding errors are then smallest
    for the largest entries. Hidden entries are finite, so that a row without visible keys does not become NaN.
    """
    shifted = rows - rows.amax(dim=-1, keepdim=True)
    return shifted.clamp(min=torch.finfo(dtype).min).to(dtype)

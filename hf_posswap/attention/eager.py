"""Eager attention: scores, bias, mask, softmax and values as separate operations. No other backend returns weights."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.attention.inputs import AttentionInputs, Mix, masked_rows, repeat_heads, visible_keys
from hf_posswap.common.biases import Bias


def weights_of(inputs: AttentionInputs, bias: Bias | None, start: int, stop: int) -> Tensor:
    """Return the attention weights of the queries start…stop−1, float32, (B, H, stop − start, Lk)."""
    q, k = inputs.q[:, :, start:stop], repeat_heads(inputs.k, inputs.q.shape[1])
    # float16 products of unscaled queries can overflow, and what is computed from scores can magnify their rounding.
    if q.dtype == torch.float16 or (bias is not None and bias.reads_scores and q.dtype == torch.bfloat16):
        scores = (q.float() * inputs.scaling) @ k.float().transpose(-1, -2)
    else:
        scores = (q @ k.transpose(-1, -2)).float() * inputs.scaling
    if bias is not None:
        scores = bias.replaced(scores, start, stop)
    if inputs.softcap is not None:
        scores = torch.tanh(scores / inputs.softcap) * inputs.softcap
    if bias is not None:
        visible = visible_keys(inputs, start, stop) if bias.reads_scores or bias.reads_mask else None
        scores = bias.added(scores, start, stop, visible)
    scores = masked_rows(inputs, scores, start, stop)
    if inputs.sinks is None:
        return torch.softmax(scores, dim=-1)
    sinks = inputs.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]


def eager_block(
    inputs: AttentionInputs, bias: Bias | None, mix: Mix | None, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """Return context (B, H, n, D) and weights (B, H, n, Lk) of the queries start…stop−1, in the values' dtype."""
    dtype = inputs.v.dtype
    weights = weights_of(inputs, bias, start, stop)
    weights = F.dropout(weights, inputs.dropout, training=inputs.dropout > 0).to(dtype)
    context = weights @ repeat_heads(inputs.v, inputs.q.shape[1])
    if mix is not None:
        context = (context.float() + mix(weights, start)).to(dtype)
    return context, weights


def eager_attention(inputs: AttentionInputs, bias: Bias | None, mix: Mix | None) -> tuple[Tensor, Tensor]:
    """Return context (B, H, Lq, D) and weights (B, H, Lq, Lk), both in the values' dtype.

    Scores are computed in float32 for half precision too: GPT-2's `reorder_and_upcast_attn` and GPT-J require this of
    eager attention.
    """
    exact = torch.promote_types(inputs.q.dtype, torch.float32)
    inputs = replace(inputs, q=inputs.q.to(exact), k=inputs.k.to(exact))
    return eager_block(inputs, bias, mix, 0, inputs.query_length)

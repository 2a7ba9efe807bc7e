"""Linear, separable and summed biases as extra channels of the heads, for fused kernels that do not support a bias.

In a causal softmax, −m·(i − j) and +m·j differ by a constant of the row. If the query has a channel m and the key has a
channel j, then q·k contains m·j. Half precision cannot hold m or j exactly, so each is split into parts whose sum is
exact. m has three parts; each part is the rounded remainder of the parts before it. j has two parts: a multiple of 256
and the rest. Up to j = 65535 each part of j has at most 8 significant bits, which bfloat16 can hold.

The sums of a `SummedBias` are no integers, so they have three parts. They differ by query head, and a key head has a
channel for each query head of its group, which is 0 in the other heads' queries. So keys are not repeated.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.biases import LinearBias, SeparableBias
from hf_posswap.common.summed_bias import SummedBias

SLOPE_PARTS = 3
SUM_PARTS = 3
SUM_UNIT = 32.0
"""Sums are stored in units of about 32, so that float16 holds sums up to 2 million and factors up to 255."""
KEY_STEP = 256
LONGEST_EXACT = KEY_STEP * KEY_STEP
CHANNEL_MULTIPLE = 8
"""Head dimensions of fused kernels should be multiples of 8."""


def split_parts(values: Tensor, dtype: torch.dtype, parts: int) -> list[Tensor]:
    """Split float32 values into `parts` tensors of `dtype` whose sum approximates the values."""
    result = []
    rest = values
    for _ in range(parts):
        part = rest.to(dtype)
        result.append(part)
        rest = rest - part.float()
    return result


def can_fold(bias: LinearBias, dtype: torch.dtype) -> bool:
    """Return whether folding is exact for this dtype and this number of keys."""
    return dtype == torch.float32 or bias.key_length <= LONGEST_EXACT


def fold_linear(inputs: AttentionInputs, bias: LinearBias) -> AttentionInputs:
    """Return the attention call without the bias and with extra channels in q and k that add the bias.

    The caller truncates the context to the values' head dimension. Key channels count from the last key backwards, so
    that scores near the end of a long text are small. The gradient of the slopes is correct in float32 only: in half
    precision the kernel rounds the gradient of each score before it multiplies the gradient with the key's position.
    """
    q, k = inputs.q, inputs.k
    batch, heads, query_length, _ = q.shape
    step = torch.arange(1 - inputs.key_length, 1, device=k.device)
    high = torch.div(step, KEY_STEP, rounding_mode="trunc") * KEY_STEP
    key_parts = [high.to(k.dtype), (step - high).to(k.dtype)]
    slope_parts = split_parts(bias.slopes.to(q.device) / inputs.scaling, q.dtype, SLOPE_PARTS)
    query_channels = torch.stack([slope for slope in slope_parts for _ in key_parts], dim=-1)
    key_channels = torch.stack([part for _ in slope_parts for part in key_parts], dim=-1)
    q = torch.cat([q, query_channels[None, :, None].expand(batch, heads, query_length, -1)], dim=-1)
    k = torch.cat([k, key_channels.expand(batch, k.shape[1], -1, -1)], dim=-1)
    return pad_channels(replace(inputs, q=q, k=k))


def fold_separable(inputs: AttentionInputs, bias: SeparableBias) -> AttentionInputs:
    """Return the attention call without the bias and with the bias's features as extra channels of q and k."""
    q = torch.cat([inputs.q, (bias.left / inputs.scaling).to(inputs.q.dtype).expand(inputs.q.shape[0], -1, -1, -1)], -1)
    heads = bias.right.shape[0]
    k = inputs.k.repeat_interleave(heads // inputs.k.shape[1], dim=1)
    v = inputs.v.repeat_interleave(heads // inputs.v.shape[1], dim=1)
    k = torch.cat([k, bias.right.to(k.dtype).expand(k.shape[0], -1, -1, -1)], dim=-1)
    return pad_channels(replace(inputs, q=q, k=k, v=v))


def fold_summed(inputs: AttentionInputs, bias: SummedBias) -> AttentionInputs:
    """Return a causal call without the bias and with extra channels in q and k that add the bias.

    In half precision only the context is exact: gradients of the sums would be rounded, and each step's gradient is a
    difference of many of them.
    """
    q, k = inputs.q, inputs.k
    parts = SUM_PARTS if q.dtype.itemsize < 4 else 1
    unit = 2.0 ** round(math.log2(SUM_UNIT / inputs.scaling))  # a power of two, so that q holds it exactly
    sums = bias.sums().to(k.device) / (inputs.scaling * unit)
    grouped = sums.expand(q.shape[0], -1, -1).unflatten(1, (k.shape[1], -1)).transpose(2, 3)
    key_parts = split_parts(grouped, k.dtype, parts)
    factors = torch.ones(1, device=q.device) if bias.factors is None else bias.factors.to(q.device)[..., None]
    query_parts = split_parts(factors * unit, q.dtype, 1 if bias.factors is None else parts)
    group = q.shape[1] // k.shape[1]
    own = torch.eye(group, dtype=q.dtype, device=q.device).repeat(k.shape[1], 1)[None, :, None]
    query_channels = [(part * own).expand(*q.shape[:3], -1) for part in query_parts]
    pairs = [(a, b) for a in range(len(query_parts)) for b in range(parts - a)]
    q = torch.cat([q, *(query_channels[a] for a, _ in pairs)], dim=-1)
    k = torch.cat([k, *(key_parts[b] for _, b in pairs)], dim=-1)
    return pad_channels(replace(inputs, q=q, k=k))


def pad_channels(inputs: AttentionInputs) -> AttentionInputs:
    """Pad q, k and v with zero channels to the same head dimension, a multiple of 8."""
    width = -(-inputs.q.shape[-1] // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (inputs.q, inputs.k, inputs.v))
    return replace(inputs, q=q, k=k, v=v)

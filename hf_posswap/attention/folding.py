"""A linear bias carried by extra head channels, so that a fused causal kernel runs it without any bias.

In a causal softmax −m·(i − j) and +m·j differ by a constant of the row. With the channels m on the query and j on the
key, q·k gains m·j. Half precision holds neither number exactly, so both ride in parts whose sum is exact: m in three
(each the rounding of what the ones before left over), j in two (multiples of 256 and the rest; each part has at most 8
significant bits up to j = 65535, which bfloat16 holds).
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.biases import LinearBias, SeparableBias

SLOPE_PARTS = 3
KEY_STEP = 256
LONGEST_EXACT = KEY_STEP * KEY_STEP
CHANNEL_MULTIPLE = 8
"""Fused kernels want head dimensions that are multiples of 8."""


def split_parts(values: Tensor, dtype: torch.dtype, parts: int) -> list[Tensor]:
    """Split float32 values into `parts` tensors of `dtype` whose sum approaches them."""
    result = []
    rest = values
    for _ in range(parts):
        part = rest.to(dtype)
        result.append(part)
        rest = rest - part.float()
    return result


def can_fold(bias: LinearBias, dtype: torch.dtype) -> bool:
    """Return whether folding is exact for this dtype and number of keys."""
    return dtype == torch.float32 or bias.key_length <= LONGEST_EXACT


def fold_linear(inputs: AttentionInputs, bias: LinearBias) -> AttentionInputs:
    """Return the same attention call without the bias, its head dimension grown by the channels that carry it.

    The caller cuts the context back to the values' head dimension. Key channels count from the last key backwards, so
    that scores near the end of a long text stay small. The gradient of the slopes comes out right in float32 only: in
    half precision the kernel rounds each score's gradient before it is multiplied with the key's position.
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
    """Return the same attention call without the bias, its features appended to the heads' channels."""
    q = torch.cat([inputs.q, (bias.left / inputs.scaling).to(inputs.q.dtype).expand(inputs.q.shape[0], -1, -1, -1)], -1)
    heads = bias.right.shape[0]
    k = inputs.k.repeat_interleave(heads // inputs.k.shape[1], dim=1)
    v = inputs.v.repeat_interleave(heads // inputs.v.shape[1], dim=1)
    k = torch.cat([k, bias.right.to(k.dtype).expand(k.shape[0], -1, -1, -1)], dim=-1)
    return pad_channels(replace(inputs, q=q, k=k, v=v))


def pad_channels(inputs: AttentionInputs) -> AttentionInputs:
    """Pad q, k and v with zero channels to one head dimension, a multiple of 8."""
    width = -(-inputs.q.shape[-1] // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (inputs.q, inputs.k, inputs.v))
    return replace(inputs, q=q, k=k, v=v)

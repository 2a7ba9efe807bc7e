"""A trainable `RelativeBias` in graphs that torch.compile traces: attention is one custom operator.

If the blocks of the forward pass were traced, autograd would save the bias of every block, which is the whole matrix.
"""

from typing import Any

import torch
from torch import Tensor

from hf_posswap.attention.cpu import strided
from hf_posswap.attention.cpu.learned import relative_gradients
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.visibility import visible_segments
from hf_posswap.common.biases import RelativeBias


def traced_relative_attention(inputs: AttentionInputs, bias: RelativeBias) -> Tensor:
    """Return the context (B, H, Lq, D) on a CPU with a `RelativeBias`, no explicit mask and no dropout."""
    context: Tensor = _attention(inputs.q, inputs.k, inputs.v, bias.values, inputs.causal, inputs.scaling)
    return context


@torch.library.custom_op("hf_posswap::relative_attention", mutates_args=(), device_types="cpu")
def _attention(q: Tensor, k: Tensor, v: Tensor, values: Tensor, causal: bool, scaling: float) -> Tensor:
    inputs = AttentionInputs(q, k, v, None, causal, scaling)
    segments = visible_segments(inputs)
    assert segments is not None, "there is no mask"
    return strided.forward(q, k, v, RelativeBias(values, q.shape[2], k.shape[2]), segments, scaling)[0]


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, values: Tensor, causal: bool, scaling: float) -> Tensor:
    batch, heads, length, dim = q.shape
    return q.new_empty(batch, length, heads, dim).transpose(1, 2)


@torch.library.custom_op("hf_posswap::relative_attention_gradients", mutates_args=(), device_types="cpu")
def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, values: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = AttentionInputs(q, k, v, None, causal, scaling)
    bias = RelativeBias(values, q.shape[2], k.shape[2])
    made = relative_gradients(inputs, bias, grad, (True, True, True, True))
    of_q, of_k, of_v, of_values = (x.contiguous() for x in made if x is not None)
    return of_q, of_k, of_v, of_values


@_gradients.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, values: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), values.new_empty(values.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.causal, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(grad, *ctx.saved_tensors, ctx.causal, ctx.scaling), None, None)


_attention.register_autograd(_backward, setup_context=_keep)

"""Which path computes attention with a bias: decided here and nowhere else."""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_posswap.attention.cpu import strided
from hf_posswap.attention.cpu.banded import banded_attention, can_band
from hf_posswap.attention.cpu.learned import learned_relative_attention
from hf_posswap.attention.cpu.learned_masked import learned_attention_in_segments
from hf_posswap.attention.cpu.learned_traced import traced_relative_attention
from hf_posswap.attention.eager import eager_attention
from hf_posswap.attention.flex import FLEX_BIASES, flex_bias_attention
from hf_posswap.attention.folding import can_fold, fold_linear, fold_separable
from hf_posswap.attention.inputs import AttentionInputs, Mix
from hf_posswap.attention.sdpa import (
    blockwise_attention,
    mixed_attention,
    plain_attention,
    relative_attention,
    single_query_attention,
)
from hf_posswap.attention.visibility import visible_segments
from hf_posswap.biases import Bias, ClippedContentBias, LinearBias, RelativeBias, RelativeContentBias, SeparableBias
from hf_posswap.errors import BackendError

BACKENDS = ("eager", "sdpa", "flex_attention", "flash_attention_2")


Natively = Callable[[AttentionInputs], tuple[Tensor, Tensor | None]]
"""Runs the stock attention function: context (B, Lq, H, d), and weights or None."""


def attend(
    inputs: AttentionInputs, bias: Bias | None, mix: Mix | None, backend: str, natively: Natively | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the context (B, H, Lq, d) and, from eager only, the weights (B, H, Lq, Lk).

    Args:
        inputs: the attention call.
        bias: what is added to the scaled scores.
        mix: what the value side adds.
        backend: one of `BACKENDS`.
        natively: the stock attention function, which flash_attention_2 runs through.

    Raises:
        BackendError: the backend is unknown or cannot carry the bias; backends that work are named.
    """
    if backend.startswith("flash_attention") and natively is not None:
        output, weights = natively(fold_for_flash(inputs, bias, mix, backend))
        return output[..., : inputs.v.shape[-1]].transpose(1, 2), weights
    if backend == "eager":
        return eager_attention(inputs, bias, mix)
    if backend == "sdpa":
        return _sdpa(inputs, bias, mix), None
    if backend == "flex_attention":
        if mix is not None or bias is None:
            raise BackendError(
                "backend 'flex_attention' cannot give the attention weights that a scheme with a value side reads "
                "(shaw with values=True). Backends that work: eager, sdpa."
            )
        return flex_bias_attention(inputs, bias), None
    raise BackendError(
        f"backend {backend!r} cannot carry a bias on the scores. Backends that work: eager, sdpa, flex_attention. "
        'Choose one with attn_implementation="sdpa" or model.set_attn_implementation("sdpa").'
    )


def fold_for_flash(inputs: AttentionInputs, bias: Bias | None, mix: Mix | None, backend: str) -> AttentionInputs:
    """Return the call a fused kernel without bias can run, its head dimension grown by the bias's channels.

    Raises:
        BackendError: the bias has no such form; silently leaving it out is the one thing that must not happen.
    """
    if isinstance(bias, LinearBias) and _needs_gradient(bias.slopes):
        raise BackendError(
            f"backend {backend!r} cannot train the slopes of a bias: their gradient would be lost in half precision. "
            'Backends that work: eager, sdpa. Choose one with model.set_attn_implementation("sdpa").'
        )
    if inputs.reshapes_scores:
        raise BackendError(
            f"backend {backend!r} cannot carry a bias beside a softcap or attention sinks. Backends that work: eager, "
            "sdpa."
        )
    if mix is None and isinstance(bias, LinearBias) and can_fold(bias, inputs.q.dtype):
        return fold_linear(inputs, bias)
    if mix is None and isinstance(bias, SeparableBias):
        return fold_separable(inputs, bias)
    kind = "a value side" if mix is not None else type(bias).__name__
    works = "eager, sdpa" + (", flex_attention" if mix is None and isinstance(bias, FLEX_BIASES) else "")
    raise BackendError(
        f"backend {backend!r} cannot carry {kind}. Backends that work: {works}. "
        'Choose one with attn_implementation="sdpa" or model.set_attn_implementation("sdpa").'
    )


def _sdpa(inputs: AttentionInputs, bias: Bias | None, mix: Mix | None) -> Tensor:
    """Take the first path that can; docs/speed.md has the measurements behind the order."""
    if bias is None and mix is None and not inputs.reshapes_scores:
        return plain_attention(inputs)
    context = _band(inputs, bias, mix)
    if context is not None:
        return context
    if mix is not None or inputs.reshapes_scores:
        return mixed_attention(inputs, bias, mix)
    assert bias is not None
    context = _channels(inputs, bias)
    if context is not None:
        return context
    if isinstance(bias, LinearBias):
        bias = bias.as_relative()
    if inputs.query_length == 1:
        return single_query_attention(inputs, bias)
    for path in (_on_cuda, _on_cpu, _traced):
        context = path(inputs, bias)
        if context is not None:
            return context
    return blockwise_attention(inputs, bias)


def _band(inputs: AttentionInputs, bias: Bias | None, mix: Mix | None) -> Tensor | None:
    """The last few keys apart from all others, with the values' vectors if there are any."""
    if not isinstance(bias, ClippedContentBias) or inputs.reshapes_scores:
        return None
    if (mix is None) is not (bias.value_table is None):
        return None
    segments = visible_segments(inputs) if _takes_kernels(inputs) and inputs.query_length > 1 else None
    return banded_attention(inputs, bias, segments) if segments is not None and can_band(bias, segments) else None


def _channels(inputs: AttentionInputs, bias: Bias) -> Tensor | None:
    """The bias in extra channels of q and k, which fused kernels on CUDA take."""
    if isinstance(bias, LinearBias) and _folds(inputs, bias):
        folded = fold_linear(inputs, bias)
    elif isinstance(bias, SeparableBias) and inputs.q.is_cuda:
        folded = fold_separable(inputs, bias)
    else:
        return None
    return plain_attention(folded)[..., : inputs.v.shape[-1]]


def _on_cuda(inputs: AttentionInputs, bias: Bias) -> Tensor | None:
    """FlexAttention reads the vector of the bias, and masks as a block mask."""
    if isinstance(bias, RelativeBias) and inputs.q.is_cuda and inputs.dropout == 0:
        return flex_bias_attention(inputs, bias)
    return None


def _on_cpu(inputs: AttentionInputs, bias: Bias) -> Tensor | None:
    """The CPU's fused kernels over a view of the bias."""
    if not _takes_kernels(inputs):
        return None
    if isinstance(bias, RelativeBias):
        segments = visible_segments(inputs)
        if segments is not None and not _needs_gradient(bias.values):
            return strided.relative_attention(inputs, bias, segments)
        if inputs.mask is None:
            return learned_relative_attention(inputs, bias)
        return None if segments is None else learned_attention_in_segments(inputs, bias, segments)
    if isinstance(bias, RelativeContentBias) and inputs.mask is None:
        given = (bias.query, bias.table, inputs.k, inputs.v, *([] if bias.shift is None else [bias.shift]))
        learns = any(map(_needs_gradient, given))
        return None if learns else strided.content_attention(inputs, bias)
    return None


def _traced(inputs: AttentionInputs, bias: Bias) -> Tensor | None:
    """Where kernels cannot be called directly: torch's wrapper over a view, or an operator if the values learn."""
    if not isinstance(bias, RelativeBias) or inputs.mask is not None:
        return None
    if not _needs_gradient(bias.values):
        return relative_attention(inputs, bias)
    if inputs.q.device.type == "cpu" and inputs.dropout == 0:
        return traced_relative_attention(inputs, bias)
    return None


def _takes_kernels(inputs: AttentionInputs) -> bool:
    """Whether torch's CPU kernels can be called directly; a graph that is traced takes torch's wrapper."""
    same_width = inputs.q.shape[-1] == inputs.v.shape[-1]
    return inputs.q.device.type == "cpu" and inputs.dropout == 0 and same_width and not torch.compiler.is_compiling()


def _folds(inputs: AttentionInputs, bias: LinearBias) -> bool:
    """On CUDA a folded bias keeps the flash kernel; on CPU the strided view is as fast, exact, and takes no channels.

    Slopes that learn are not folded: their gradient would be Σ_j dS_ij·j with dS rounded to half precision, at 2048
    keys off by up to half of its size and more.
    """
    if not can_fold(bias, inputs.q.dtype) or inputs.query_length == 1 or _needs_gradient(bias.slopes):
        return False
    return inputs.q.is_cuda and inputs.q.dtype in (torch.bfloat16, torch.float16)


def _needs_gradient(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


def explain_path(bias_kind: type[Bias] | None, mixes_values: bool, backend: str, device_type: str) -> str:
    """Say in words which path attention will take, for `describe`.

    Raises:
        BackendError: the backend cannot carry the bias.
    """
    if bias_kind is None and not mixes_values:
        return f"{backend}, exactly as in the stock model"
    if backend == "eager":
        return "eager, scores written out"
    if backend == "flex_attention":
        if mixes_values or bias_kind not in FLEX_BIASES:
            raise BackendError(f"backend {backend!r} cannot carry this scheme. Backends that work: eager, sdpa.")
        return "flex_attention, the bias as a score_mod"
    if backend == "sdpa":
        return _explain_sdpa(bias_kind, mixes_values, device_type)
    if bias_kind in (LinearBias, SeparableBias) and not mixes_values:
        return f"{backend}, the bias folded into extra channels"
    raise BackendError(f"backend {backend!r} cannot carry this scheme's bias. Backends that work: eager, sdpa.")


def _explain_sdpa(bias_kind: type[Bias] | None, mixes_values: bool, device_type: str) -> str:
    if bias_kind is ClippedContentBias and device_type == "cpu":
        return "sdpa, near keys as a band beside plain attention in a causal text, else blocks of queries written out"
    if mixes_values:
        return "blocks of queries written out, because the value side reads the weights"
    if bias_kind in (LinearBias, RelativeBias):
        if device_type == "cuda":
            folded = "folded into extra channels (half precision) or " if bias_kind is LinearBias else ""
            return f"sdpa, the bias {folded}as a FlexAttention score_mod"
        return "sdpa, the bias as a strided view of one vector per head"
    if bias_kind is RelativeContentBias and device_type == "cpu":
        return "sdpa, a block of queries' products with all distances as a strided view"
    return "sdpa, the bias made for one block of queries at a time"

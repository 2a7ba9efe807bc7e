"""Fused attention as an autograd function that supports `torch.func.grad` and second derivatives.

The first derivative is a fused backward pass, which is an autograd function too. Its derivative is computed from
unfused attention: second derivatives are correct, but need memory for all scores.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_posswap.attention.inputs import bias_dtype, repeat_heads
from hf_posswap.attention.visibility import Segment, shown_by
from hf_posswap.common.biases import RelativeBias


class FusedCall(ABC):
    """One call of a fused kernel: forward pass, backward pass, and the same attention in plain torch functions."""

    results: ClassVar[int] = 1
    """Number of tensors returned by `forward` that have gradients; the other tensors are for the backward pass."""
    reads_results: ClassVar[bool] = True
    """Whether the backward pass reads the results of `forward`; if not, they are not saved."""

    @abstractmethod
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the results."""

    @abstractmethod
    def backward(
        self, grads: Sequence[Tensor], tensors: Sequence[Tensor], kept: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of the tensors; None for tensors whose gradient is not needed.

        Args:
            grads: gradients of the results.
            tensors: the arguments of `forward`.
            kept: all results of `forward`; empty if `reads_results` is False.
            wanted: for each tensor, whether its gradient is needed.
        """

    @abstractmethod
    def written_out(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the results that have gradients, computed by functions that support derivatives of any order."""


def run(call: FusedCall, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Run a call and return the results that have gradients."""
    made: tuple[Tensor, ...] = _Fused.apply(call, *tensors)
    return made[: call.results]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(call: FusedCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call.forward(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *tensors = inputs
        ctx.count = len(tensors)
        ctx.mark_non_differentiable(*output[ctx.call.results :])
        ctx.save_for_backward(*tensors, *(output if ctx.call.reads_results else ()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        made = iter(_Gradients.apply(ctx.call, wanted, ctx.count, *grads[: ctx.call.results], *ctx.saved_tensors))
        return (None, *(next(made) if want else None for want in wanted))


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(call: FusedCall, wanted: Sequence[bool], count: int, *given: Tensor) -> tuple[Tensor, ...]:
        grads, tensors, kept = _parts(call, count, given)
        with torch.autocast(given[0].device.type, enabled=False):  # autocast would round the scores
            made = call.backward(grads, tensors, kept, wanted)
        return tuple(gradient for gradient, want in zip(made, wanted, strict=True) if want and gradient is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.wanted, ctx.count, *given = inputs
        ctx.save_for_backward(*given)

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor) -> tuple[Tensor | None, ...]:
        call, first = ctx.call, ctx.call.results
        grads, tensors, kept = _parts(call, ctx.count, ctx.saved_tensors)

        def gradients(*given: Tensor) -> tuple[Tensor, ...]:
            pull: Any = torch.func.vjp(call.written_out, *given[first:])[1]
            made = pull(given[:first])
            return tuple(gradient for gradient, want in zip(made, ctx.wanted, strict=True) if want)

        with torch.autocast(tensors[0].device.type, enabled=False):
            pull: Any = torch.func.vjp(gradients, *grads, *tensors)[1]
            return (None, None, None, *pull(seconds), *[None] * len(kept))


def _parts(call: FusedCall, count: int, given: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
    """Split a flat sequence into the gradients of the results, the tensors, and the saved results."""
    first = call.results
    return tuple(given[:first]), tuple(given[first : first + count]), tuple(given[first + count :])


def relative_written_out(
    q: Tensor, k: Tensor, v: Tensor, values: Tensor, segments: Sequence[Segment], scaling: float
) -> Tensor:
    """Return the context (B, H, Lq, D) with a `RelativeBias` of these values; zeros for queries that see no key."""
    exact, heads = bias_dtype(q), q.shape[1]
    shown = shown_by(segments, q.shape[0], q.shape[2], k.shape[2]).to(q.device)[:, None]
    rows = RelativeBias(values.to(exact), q.shape[2], k.shape[2]).rows(0, q.shape[2])
    scores = q.to(exact) @ repeat_heads(k, heads).to(exact).mT * scaling + rows
    weights = torch.softmax(scores.masked_fill(~shown, torch.finfo(exact).min), dim=-1) * shown
    return (weights @ repeat_heads(v, heads).to(exact)).to(q.dtype)

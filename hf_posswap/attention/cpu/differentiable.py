"""Fused attention as a function that autograd, `torch.func.grad` and second derivatives take.

The first derivative is a fused backward pass. It is a function of its own, whose derivative is that of attention
written out: second derivatives are right, at the cost of all scores at once.
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
    """One call of a fused kernel: how to run it, its backward pass, and the same attention in torch's own functions."""

    results: ClassVar[int] = 1
    """How many of the tensors that `forward` returns have gradients; the backward pass reads the others."""
    reads_results: ClassVar[bool] = True
    """Whether the backward pass reads what `forward` returned; otherwise it is not kept."""

    @abstractmethod
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the results."""

    @abstractmethod
    def backward(
        self, grads: Sequence[Tensor], tensors: Sequence[Tensor], kept: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of the tensors, None for those that are not wanted.

        Args:
            grads: gradients of the results.
            tensors: as `forward` took them.
            kept: all that `forward` returned, or nothing.
            wanted: for each tensor, whether its gradient is asked for.
        """

    @abstractmethod
    def written_out(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the results that have gradients, by functions that can be differentiated as often as one likes."""


def run(call: FusedCall, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the results of a call that have gradients."""
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
        with torch.autocast(given[0].device.type, enabled=False):  # it would round the scores
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
    """Split gradients of the results, the tensors, and what was kept."""
    first = call.results
    return tuple(given[:first]), tuple(given[first : first + count]), tuple(given[first + count :])


def relative_written_out(
    q: Tensor, k: Tensor, v: Tensor, values: Tensor, segments: Sequence[Segment], scaling: float
) -> Tensor:
    """Return the context (B, H, Lq, d) with a `RelativeBias` of these values; zeros where a query sees nothing."""
    exact, heads = bias_dtype(q), q.shape[1]
    shown = shown_by(segments, q.shape[0], q.shape[2], k.shape[2]).to(q.device)[:, None]
    rows = RelativeBias(values.to(exact), q.shape[2], k.shape[2]).rows(0, q.shape[2])
    scores = q.to(exact) @ repeat_heads(k, heads).to(exact).mT * scaling + rows
    weights = torch.softmax(scores.masked_fill(~shown, torch.finfo(exact).min), dim=-1) * shown
    return (weights @ repeat_heads(v, heads).to(exact)).to(q.dtype)

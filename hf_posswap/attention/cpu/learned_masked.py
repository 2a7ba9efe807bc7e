"""Attention with a mask and a trainable `RelativeBias`: fused forward and backward passes, and the bias's gradient.

The fused backward pass gives the gradients of q, k and v. The gradient of the bias needs the gradients of the scores,
which are computed a second time, in blocks of queries; `hf_posswap.attention.cpu.learned` has the formulas. Without a
mask, that module computes all gradients in one pass, which is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_posswap.attention.cpu import strided
from hf_posswap.attention.cpu.differentiable import FusedCall, relative_written_out, run
from hf_posswap.attention.cpu.learned import diagonal_sums
from hf_posswap.attention.inputs import AttentionInputs, bias_dtype
from hf_posswap.attention.visibility import Segment
from hf_posswap.common.biases import RelativeBias

BLOCK = 64
"""Queries whose scores are computed at once."""


def learned_attention_in_segments(inputs: AttentionInputs, bias: RelativeBias, segments: Sequence[Segment]) -> Tensor:
    """Return the context (B, H, Lq, D) with a trainable `RelativeBias`; zeros for queries that see no key."""
    return run(_LearnedInSegments(segments, inputs.scaling), inputs.q, inputs.k, inputs.v, bias.values)[0]


@dataclass(frozen=True)
class _LearnedInSegments(FusedCall):
    """Attention of q, k, v and the bias's values."""

    segments: Sequence[Segment]
    scaling: float

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        q, k, v, values = tensors
        return strided.forward(q, k, v, RelativeBias(values, q.shape[2], k.shape[2]), self.segments, self.scaling)

    def backward(
        self, grads: Sequence[Tensor], tensors: Sequence[Tensor], kept: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        (grad,), (q, k, v, values), (context, sums) = grads, tensors, kept
        bias = RelativeBias(values, q.shape[2], k.shape[2])
        gradients: tuple[Tensor | None, ...] = (None, None, None)
        if any(wanted[:3]):
            gradients = strided.backward(grad, q, k, v, context, sums, bias, self.segments, self.scaling)
        of_values = None
        if wanted[3]:
            of_values = values_gradient(grad, q, k, v, sums, bias, self.segments, self.scaling).to(values)
        return (*gradients, of_values)

    def written_out(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        q, k, v, values = tensors
        return (relative_written_out(q, k, v, values, self.segments, self.scaling),)


def values_gradient(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor,
    bias: RelativeBias,
    segments: Sequence[Segment],
    scaling: float,
) -> Tensor:
    """Return the gradient of a bias's values (H, Lq + Lk − 1), in float32 or better.

    Args:
        grad: gradient of the context.
        q: queries.
        k: keys.
        v: values.
        sums: log-sum-exp of each query's scores.
        bias: the bias.
        segments: the keys that each query sees.
        scaling: factor on q·k.
    """
    exact, key_heads = bias_dtype(q), k.shape[1]
    reversed_k, reversed_v = (x.flip(2).to(exact).mT for x in (k, v))
    total = torch.zeros_like(bias.values, dtype=exact)
    for batch, queries, keys, rows in strided.relative_blocks(bias, segments, exact, step=BLOCK):
        count, seen = rows.shape[2:]

        def shared(x: Tensor, batch: slice = batch, queries: slice = queries) -> Tensor:
            """Return the block's queries; those of heads that share a key head are concatenated."""
            return x[batch, :, queries].to(exact).unflatten(1, (key_heads, -1)).flatten(2, 3)

        scores = (shared(q) @ reversed_k[batch, :, :, keys]).mul_(scaling).view(rows.shape)
        weights = scores.add_(rows).sub_(sums[batch, :, queries, None]).exp_()
        padded = weights.new_zeros(*rows.shape[:3], seen + count)
        inner = padded[..., :seen]
        torch.mul(weights, (shared(grad) @ reversed_v[batch, :, :, keys]).view(rows.shape), out=inner)
        inner.addcmul_(weights, inner.sum(-1, keepdim=True), value=-1)
        total[:, queries.start + keys.start :][:, : count + seen - 1] += diagonal_sums(padded)
    return total

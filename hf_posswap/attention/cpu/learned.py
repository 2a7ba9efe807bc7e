"""Attention with a trainable `RelativeBias`: a fused forward pass, and a backward pass in blocks of queries.

torch's fused kernels give no gradient of a mask. Here the forward pass runs the fused kernel with a strided view and
saves only q, k, v and the bias vector. The backward pass recomputes the scores of a block of queries, for a few heads
at a time. With P = softmax(scaling·q·kᵀ + bias), the gradient of the scores is dS = P ∘ (dP − rowsum(P ∘ dP)) with
dP = dO·vᵀ (FlashAttention, Dao et al. 2022, appendix B.2). The gradient of the bias at a distance is the sum of dS over
the diagonal of that distance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_posswap.attention.cpu.differentiable import FusedCall, relative_written_out, run
from hf_posswap.attention.inputs import AttentionInputs, bias_dtype
from hf_posswap.attention.sdpa import blockwise_attention, relative_attention, reversed_values
from hf_posswap.attention.visibility import visible_segments
from hf_posswap.common.biases import RelativeBias

BLOCK_ROWS = 128
"""Rows of scores per key head and block: queries × query heads that share the key head. The fastest of 32…256, measured
on a CPU between 512 and 8192 tokens."""
TILE_ELEMENTS = 2**19
"""Limit of the number of scores in memory; it sets how many key heads and batch rows are computed at a time, at least
one of each."""


def learned_relative_attention(inputs: AttentionInputs, bias: RelativeBias) -> Tensor:
    """Return the context (B, H, Lq, D) of attention with a `RelativeBias`, no explicit mask and no dropout.

    q, k, v and the bias's values get gradients; only these tensors are saved for the backward pass. The gradient of the
    values is summed in float32 (float64 for float64 queries), from gradients of scores that are not rounded to half
    precision. Second derivatives need memory for all scores, see `differentiable`.
    """
    tensors = (inputs.q, inputs.k, inputs.v, bias.values)
    return run(_LearnedCall(inputs.causal, inputs.scaling), *tensors)[0]


@dataclass(frozen=True)
class _LearnedCall(FusedCall):
    """Attention of q, k, v and the bias's values."""

    causal: bool
    scaling: float
    reads_results: ClassVar[bool] = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, bias = self._call(tensors)
        # Only the CPU's fused kernel supports a mask whose rows overlap in memory.
        attend = relative_attention if inputs.q.device.type == "cpu" else blockwise_attention
        return (attend(inputs, bias),)

    def backward(
        self, grads: Sequence[Tensor], tensors: Sequence[Tensor], kept: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        return relative_gradients(*self._call(tensors), grads[0], wanted)

    def written_out(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        segments = visible_segments(self._call(tensors)[0])
        assert segments is not None, "there is no mask"
        q, k, v, values = tensors
        return (relative_written_out(q, k, v, values, segments, self.scaling),)

    def _call(self, tensors: Sequence[Tensor]) -> tuple[AttentionInputs, RelativeBias]:
        q, k, v, values = tensors
        inputs = AttentionInputs(q, k, v, None, self.causal, self.scaling)
        return inputs, RelativeBias(values, inputs.query_length, inputs.key_length)


def relative_gradients(
    inputs: AttentionInputs, bias: RelativeBias, grad: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of q, k, v and the bias's values; None for gradients that are not needed.

    Args:
        inputs: the attention call, without mask and dropout.
        bias: the bias of the call.
        grad: gradient of the context, (B, H, Lq, D).
        wanted: for each of the four gradients, whether it is needed.
    """
    source = reversed_values(inputs, bias)
    tensors = (inputs.q, inputs.k, inputs.v)
    results = [torch.empty_like(x) if want else None for x, want in zip(tensors, wanted[:3], strict=True)]
    by_distance = torch.zeros_like(source)
    for group in head_groups(inputs):
        backward = _GroupBackward(inputs, group, grad, wanted)
        for start in range(0, inputs.query_length, group.block):
            stop = min(start + group.block, inputs.query_length)
            rows = bias.flipped_rows(start, stop, source)[group.heads]
            diagonals = backward.add_block(start, stop, rows)
            if diagonals is not None:
                first = inputs.query_length - stop
                by_distance[group.heads, first : first + diagonals.shape[-1]] += diagonals
        backward.store(results)
    return [*results, by_distance.flip(-1).to(bias.values) if wanted[3] else None]


@dataclass(frozen=True)
class HeadGroup:
    """Batch rows and heads that are computed at the same time.

    Attributes:
        batch: batch rows.
        key_heads: heads of k and v.
        heads: heads of q that attend to these key heads.
        block: queries per block.
    """

    batch: slice
    key_heads: slice
    heads: slice
    block: int


def head_groups(inputs: AttentionInputs) -> Iterator[HeadGroup]:
    """Yield groups of batch rows and heads with at most `TILE_ELEMENTS` scores per block, or of one key head."""
    batch, key_heads, keys = inputs.k.shape[:3]
    sharing = inputs.q.shape[1] // key_heads
    block = max(1, BLOCK_ROWS // sharing)
    one_head = sharing * block * (keys + block)
    head_step = min(key_heads, max(1, TILE_ELEMENTS // one_head))
    batch_step = min(batch, max(1, TILE_ELEMENTS // (one_head * head_step)))
    for row in range(0, batch, batch_step):
        for head in range(0, key_heads, head_step):
            last = min(head + head_step, key_heads)
            heads = slice(head * sharing, last * sharing)
            yield HeadGroup(slice(row, min(row + batch_step, batch)), slice(head, last), heads, block)


class _GroupBackward:
    """The backward pass of one group of heads: sums over its blocks of queries, in float32 or better.

    Queries are in reverse order, as the strided view requires. Shapes: N = batch rows × key heads of the group,
    G = query heads per key head, n = queries of a block, m = keys that the block sees. Products with P and dS are
    computed in bfloat16 if the inputs are, as in the fused kernels. For float16 they are computed in float32, because
    the range of float16 is too small for dS.
    """

    def __init__(self, inputs: AttentionInputs, group: HeadGroup, grad: Tensor, wanted: Sequence[bool]) -> None:
        self.inputs, self.group, self.wanted = inputs, group, wanted
        self.exact = bias_dtype(inputs.q)
        self.product = torch.bfloat16 if inputs.q.dtype == torch.bfloat16 else self.exact
        self.q, self.grad = (x[group.batch, group.heads].to(self.product).flip(2) for x in (inputs.q, grad))
        k, v = (x[group.batch, group.key_heads].flatten(0, 1).contiguous() for x in (inputs.k, inputs.v))
        self.k = k.to(self.product)
        self.k_exact, self.v_exact = k.to(self.exact).mT, v.to(self.exact).mT
        self.grad_q = torch.empty_like(self.q, dtype=self.exact)
        # (N, D, Lk): products with the scores of a block are faster if the keys are the last dimension.
        self.grad_k, self.grad_v = (torch.zeros(x.shape, dtype=self.exact, device=x.device) for x in (k.mT, v.mT))

    def add_block(self, start: int, stop: int, rows: Tensor) -> Tensor | None:
        """Add the contributions of the queries start…stop−1; return the gradient of their bias, summed over diagonals.

        Args:
            start: first query.
            stop: one past the last query.
            rows: the bias of these queries in reverse order, (heads, n, Lk).

        Returns:
            (heads, n + m − 1), in the order of `reversed_values` from its element Lq − stop on; None if not needed.
        """
        wants_q, wants_k, wants_v, wants_values = self.wanted
        seen = stop if self.inputs.implicit_causal else self.inputs.key_length
        block = slice(self.inputs.query_length - stop, self.inputs.query_length - start)
        q, grad = (x[:, :, block].reshape(len(self.k), -1, x.shape[-1]) for x in (self.q, self.grad))
        weights = self._weights(q, rows[..., :seen])
        if wants_v:
            _accumulate(self.grad_v[..., :seen], grad.mT, weights.to(self.product))
        if not (wants_q or wants_k or wants_values):
            return None
        padded = self._score_gradients(weights, grad, stop - start)
        scores = padded[..., :seen].to(self.product)
        if wants_q:
            self.grad_q[:, :, block] = torch.bmm(scores, self.k[:, :seen]).view_as(self.grad_q[:, :, block])
        if wants_k:
            _accumulate(self.grad_k[..., :seen], q.mT, scores)
        return diagonal_sums(padded.view(*self.q.shape[:2], stop - start, -1)) if wants_values else None

    def _weights(self, q: Tensor, rows: Tensor) -> Tensor:
        """Return P of a block, (N, G·n, m)."""
        scores = torch.bmm(q.to(self.exact), self.k_exact[..., : rows.shape[-1]])
        by_head = scores.view(*self.q.shape[:2], *rows.shape[1:])
        torch.add(rows, by_head, alpha=self.inputs.scaling, out=by_head)
        return torch.softmax(scores, dim=-1)

    def _score_gradients(self, weights: Tensor, grad: Tensor, padding: int) -> Tensor:
        """Return dS of a block, followed by columns of zeros, (N, G·n, m + padding)."""
        seen = weights.shape[-1]
        padded = weights.new_empty(*weights.shape[:2], seen + padding)
        padded[..., seen:] = 0
        scores = padded[..., :seen]
        torch.mul(weights, torch.bmm(grad.to(self.exact), self.v_exact[..., :seen]), out=scores)
        # rowsum(dO ∘ O) would be less exact: O was rounded to the queries' dtype, and its errors add up over diagonals.
        scores.addcmul_(weights, scores.sum(-1, keepdim=True), value=-1)
        return padded

    def store(self, results: Sequence[Tensor | None]) -> None:
        """Write the gradients of this group's parts of q, k and v into the results."""
        group, scaling = self.group, self.inputs.scaling
        grad_q, grad_k, grad_v = results
        if grad_q is not None:
            grad_q[group.batch, group.heads] = (self.grad_q.flip(2) * scaling).to(grad_q.dtype)
        for total, own in ((grad_k, self.grad_k * scaling), (grad_v, self.grad_v)):
            if total is not None:
                part = total[group.batch, group.key_heads]
                part.copy_(own.mT.view(part.shape))


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the batched product a·b, computed in the dtype of a and b, to a total of another dtype."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


def diagonal_sums(padded: Tensor) -> Tensor:
    """Sum a block over the batch and over its anti-diagonals, row + column = constant, without a copy.

    If a matrix of n rows and m + n columns is read with rows of m + n − 1 elements, each row is shifted right by one
    element more than the row above, so that anti-diagonals become columns. This is the relative shift of Transformer-XL
    (appendix B), reversed.

    Args:
        padded: contiguous, (B, H, n, m + n), the last n columns zero.

    Returns:
        (H, n + m − 1).
    """
    queries, columns = padded.shape[-2:]
    shifted = padded.flatten(-2)[..., : queries * (columns - 1)].unflatten(-1, (queries, columns - 1))
    return shifted.sum(dim=(0, 2))

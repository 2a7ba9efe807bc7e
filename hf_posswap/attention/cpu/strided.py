"""Attention on a CPU with a bias that is a strided view: torch's fused kernels, forward and backward, block by block.

If the keys are in reverse order, the bias of query i and reversed key j′ is element i + j′ of a vector per head. This
Hankel matrix is a strided view whose rows overlap in memory. Softmax does not depend on the order of the keys. Keys and
values are reversed, not queries: they are fewer under grouped-query attention, and the context then needs no reversal.

The kernels are called directly, without torch's wrapper, for two reasons. All blocks write to one context tensor, so
that training saves the same tensors as stock attention (q, k, v, the context and one number per query). The kernels
also return the log-sum-exp of the scores. They support grouped-query attention without repeated heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_posswap.attention.cpu.differentiable import FusedCall, relative_written_out, run
from hf_posswap.attention.inputs import AttentionInputs, bias_dtype
from hf_posswap.attention.visibility import Segment
from hf_posswap.common.biases import RelativeBias
from hf_posswap.common.content_biases import RelativeContentBias

QUERY_BLOCK = 256
"""Smallest number of queries per block. In a causal text, half of a block's square at the diagonal is computed and
masked, which favours short blocks; each block is one kernel call with a constant cost, which favours long blocks. 256
is the fastest of 128…2048 at 2048 and 4096 tokens in float32, and at 2048 tokens in bfloat16."""
LONGEST_BLOCK = 1024
BLOCKS = 8
"""Number of blocks of a long text in half precision; a block has at most `LONGEST_BLOCK` queries. In half precision
each call converts all keys that the block sees, so longer blocks are faster for long texts: at 4096 tokens, the
backward pass with 1024 queries took two thirds of the time of 256."""
LARGE_TILES = 768
"""Number of queries from which torch's kernel processes 256 queries at a time; below it, 64. In float32 a block has
this length if it is at most an eighth of the text: at 16384 tokens this took four fifths of the time of 256 queries, at
2048 tokens it took longer."""
CONTENT_BLOCK = 64
"""Queries per block for a bias that depends on the queries and is computed per block. On a CPU with AVX2, 32, 64, 96
and 128 took equally long within the noise, from 512 to 8192 tokens in float32; memory grows with the block."""


class Block(NamedTuple):
    """Queries of some batch rows, and the keys that they see, with indices in the reversed order of the keys."""

    batch: slice
    queries: slice
    keys: slice
    rows: Tensor
    """The bias, (B, H, n, m)."""


def relative_attention(inputs: AttentionInputs, bias: RelativeBias, segments: Sequence[Segment]) -> Tensor:
    """Return the context (B, H, Lq, D) with a fixed `RelativeBias`; zeros for queries that see no key."""
    tensors = (inputs.q, inputs.k, inputs.v)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return run(_StridedCall(bias, segments, inputs.scaling), *tensors)[0]
    return forward(*tensors, bias, segments, inputs.scaling)[0]


@dataclass(frozen=True)
class _StridedCall(FusedCall):
    """Attention of q, k and v; the bias gets no gradient."""

    bias: RelativeBias
    segments: Sequence[Segment]
    scaling: float

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        q, k, v = tensors
        return forward(q, k, v, self.bias, self.segments, self.scaling)

    def backward(
        self, grads: Sequence[Tensor], tensors: Sequence[Tensor], kept: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        (grad,), (q, k, v), (context, sums) = grads, tensors, kept
        return backward(grad, q, k, v, context, sums, self.bias, self.segments, self.scaling)

    def written_out(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        q, k, v = tensors
        return (relative_written_out(q, k, v, self.bias.values, self.segments, self.scaling),)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: RelativeBias, segments: Sequence[Segment], scaling: float
) -> tuple[Tensor, Tensor]:
    """Return the context and the log-sum-exp of the scores (B, H, Lq), float32 or better."""
    batch, heads, queries, dim = q.shape
    whole = sum((s.stop - s.start) * (s.batch.stop - s.batch.start) for s in segments) == batch * queries
    context = (q.new_empty if whole else q.new_zeros)(batch, queries, heads, dim).transpose(1, 2)
    sums = q.new_empty(batch, queries, heads, dtype=bias_dtype(q)).transpose(1, 2)
    reversed_k, reversed_v = k.flip(2), v.flip(2)
    for block in relative_blocks(bias, segments, bias_dtype(q), q.dtype.itemsize == 2):
        context[block.batch, :, block.queries], sums[block.batch, :, block.queries] = fused(
            q[block.batch, :, block.queries],
            reversed_k[block.batch, :, block.keys],
            reversed_v[block.batch, :, block.keys],
            block.rows,
            scaling,
        )
    return context, sums


def fused(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Return context and log-sum-exp of the CPU's fused kernel; attention is causal if `rows` is None."""
    context, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, rows is None, attn_mask=rows, scale=scaling
    )
    return context, sums


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: Tensor,
    sums: Tensor,
    bias: RelativeBias,
    segments: Sequence[Segment],
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; those of k and v are summed over blocks in float32 or better."""
    exact = bias_dtype(q)
    reversed_k, reversed_v = k.flip(2), v.flip(2)
    grad_q = torch.zeros_like(q)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=exact) for x in (k, v))
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    for batch, queries, keys, rows in relative_blocks(bias, segments, exact, q.dtype.itemsize == 2):
        of_q, of_k, of_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad[batch, :, queries],
            q[batch, :, queries],
            reversed_k[batch, :, keys],
            reversed_v[batch, :, keys],
            context[batch, :, queries],
            sums[batch, :, queries],
            0.0,
            False,
            attn_mask=rows,
            scale=scaling,
        )
        grad_q[batch, :, queries] = of_q
        grad_k[batch, :, keys] += of_k
        grad_v[batch, :, keys] += of_v
    return grad_q, grad_k.flip(2).to(k.dtype), grad_v.flip(2).to(v.dtype)


def query_block(length: int, half: bool) -> int:
    """Return the number of queries per block for a text of this length; `half`: in half precision."""
    if half:
        return min(max(length // BLOCKS, QUERY_BLOCK), LONGEST_BLOCK)
    return LARGE_TILES if length >= BLOCKS * LARGE_TILES else QUERY_BLOCK


def relative_blocks(
    bias: RelativeBias, segments: Sequence[Segment], dtype: torch.dtype, half: bool = False, step: int | None = None
) -> Iterator[Block]:
    """Yield the blocks of all segments; their bias is a view of one vector per head.

    Args:
        bias: the bias.
        segments: the keys that each query sees.
        dtype: dtype of the bias rows.
        half: whether queries, keys and values are in half precision.
        step: queries per block; None: the result of `query_block`.
    """
    keys = bias.key_length
    sources: dict[tuple[int | None, int | None], Tensor] = {}
    for segment in segments:
        limits = (segment.least, segment.most)
        if limits not in sources:
            sources[limits] = bias.within(*limits).to(dtype).contiguous()
        source = sources[limits]
        for start, stop, first, last in segment.blocks(step or query_block(segment.stop - segment.start, half)):
            rows = segment.batch.stop - segment.batch.start
            view = source.as_strided(
                (rows, source.shape[0], stop - start, last - first),
                (0, source.stride(0), 1, 1),
                source.storage_offset() + start + keys - last,
            )
            yield Block(segment.batch, slice(start, stop), slice(keys - last, keys - first), view)


def content_attention(inputs: AttentionInputs, bias: RelativeContentBias) -> Tensor:
    """Return the context (B, H, Lq, D) of attention without a mask and with a `RelativeContentBias`; no gradients.

    The products of a block with all distances are computed once. The bias of the pairs of query and key is a strided
    view of these products: with the keys in reverse order, row r begins r elements later. Distances below 0 are whole
    columns of the products.
    """
    batch, heads, queries, _ = inputs.q.shape
    keys, causal = inputs.key_length, inputs.implicit_causal
    context = torch.empty_like(inputs.q)
    reversed_k, reversed_v = inputs.k.flip(2), inputs.v.flip(2)
    dtype = bias_dtype(inputs.q)
    for start in range(0, queries, CONTENT_BLOCK):
        stop = min(start + CONTENT_BLOCK, queries)
        last = min(stop, keys) if causal else keys
        count = stop - start
        width = count + last - 1
        first_distance = start + keys - last  # table index of the distance from the first query to the last key
        hidden = max(0, keys - 1 - first_distance) if causal else 0
        products = torch.empty(batch, heads, count, width, dtype=dtype)
        products[..., :hidden] = float("-inf")
        seen = bias.distance_vectors(first_distance + hidden, first_distance + width).to(dtype)
        for asking, row in zip(bias.queries(start, stop).to(dtype), products, strict=True):
            # Unlike matmul, bmm can write into a part of a tensor without a copy.
            torch.bmm(asking, seen.expand(heads, -1, -1).mT, out=row[..., hidden:])
        rows = products.as_strided(
            (batch, heads, count, last),
            (heads * count * width, count * width, width + 1, 1),
        )
        context[:, :, start:stop] = fused(
            inputs.q[:, :, start:stop], reversed_k[:, :, keys - last :], reversed_v[:, :, keys - last :], rows,
            inputs.scaling,
        )[0]  # fmt: skip
    return context

"""Attention on CPU with a bias that is a strided view: torch's fused kernels, forward and backward, block by block.

With the keys in reverse, the bias of query i and reversed key j′ is element i + j′ of a vector per head: a Hankel
matrix, which is a view whose rows overlap in memory. Keys and values are reversed, not queries, because they are fewer
under grouped-query attention and what a query gives then needs no turning back. Softmax does not mind the keys' order.

The kernels are called without torch's wrapper, for two reasons: one tensor takes the context of all blocks, so that
training keeps what stock attention keeps (q, k, v, the context and one number per query), and the log-sum-exp of the
scores comes with it. They take grouped heads as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_posswap.attention.cpu.differentiable import FusedCall, relative_written_out, run
from hf_posswap.attention.inputs import AttentionInputs, bias_dtype
from hf_posswap.attention.visibility import Segment
from hf_posswap.common.biases import RelativeBias, RelativeContentBias

QUERY_BLOCK = 256
"""Queries per block, at least. In a causal text half of a block's square over the diagonal is wasted; each block is a
call with its own start-up. Best of 128…2048 at 2048 and 4096 tokens in float32, and at 2048 in bfloat16."""
LONGEST_BLOCK = 1024
BLOCKS = 8
"""Half precision converts all keys a block sees in each call, so long texts take longer blocks: an eighth, at most
`LONGEST_BLOCK`. At 4096 tokens, backward, 1024 queries took two thirds of the time of 256."""
LARGE_TILES = 768
"""Queries from which torch's kernel takes 256 of them at a time, below that 64. In float32 a block is as long once it
is no more than an eighth of the text: at 16384 tokens that took four fifths of the time of 256, at 2048 more."""
CONTENT_BLOCK = 64
"""Queries per block where the bias reads the queries and a block of it has to be made. On a CPU with AVX2, 32, 64, 96
and 128 took equally long within the noise, from 512 to 8192 tokens in float32; memory grows with the block."""


class Block(NamedTuple):
    """Queries of some batch rows, and the keys they see, counted in reverse."""

    batch: slice
    queries: slice
    keys: slice
    rows: Tensor
    """The bias, (B, H, n, m)."""


def relative_attention(inputs: AttentionInputs, bias: RelativeBias, segments: Sequence[Segment]) -> Tensor:
    """Return the context (B, H, Lq, d) with a `RelativeBias` without gradient; zeros where a query sees nothing."""
    tensors = (inputs.q, inputs.k, inputs.v)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return run(_StridedCall(bias, segments, inputs.scaling), *tensors)[0]
    return forward(*tensors, bias, segments, inputs.scaling)[0]


@dataclass(frozen=True)
class _StridedCall(FusedCall):
    """Attention of q, k and v; the bias stands still."""

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
    """Return context and log-sum-exp of the CPU's fused kernel; causal if there are no bias rows."""
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
    """Return how many queries of a text to take at once, in half precision or not."""
    if half:
        return min(max(length // BLOCKS, QUERY_BLOCK), LONGEST_BLOCK)
    return LARGE_TILES if length >= BLOCKS * LARGE_TILES else QUERY_BLOCK


def relative_blocks(
    bias: RelativeBias, segments: Sequence[Segment], dtype: torch.dtype, half: bool = False, step: int | None = None
) -> Iterator[Block]:
    """Yield the blocks of all segments, their bias a view of one vector per head.

    Args:
        bias: the bias.
        segments: what each query sees.
        dtype: of the bias rows.
        half: whether queries, keys and values are in half precision.
        step: queries per block; None: as `query_block` says.
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
    """Return the context (B, H, Lq, d) of attention without a mask and a `RelativeContentBias`; no gradients.

    A block's products with all distances are made once; what pairs of query and key need of them is again a view:
    with the keys in reverse, row r begins r places further on. The future is a run of whole columns.
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
        first_distance = start + keys - last  # index in the table of the first query's distance to the last key
        hidden = max(0, keys - 1 - first_distance) if causal else 0
        products = torch.empty(batch, heads, count, width, dtype=dtype)
        products[..., :hidden] = float("-inf")
        seen = bias.distance_vectors(first_distance + hidden, first_distance + width).to(dtype)
        for asking, row in zip(bias.queries(start, stop).to(dtype), products, strict=True):
            # Unlike matmul, bmm writes into a part of a tensor without a copy.
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

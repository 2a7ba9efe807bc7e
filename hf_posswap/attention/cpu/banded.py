"""Causal attention with a bias that depends on the query and is the same for all keys beyond a few distances.

In Shaw's scheme, all keys at a distance of K or more have the same vector a_K. So q·a_K is one number for the whole row
and does not change the softmax. Subtracting it leaves a band of K distances with the bias q·(a_Δ − a_K), and causal
attention without a bias for all other keys, which a fused kernel computes. The log-sum-exps of the scores combine the
two parts, as in FlashAttention (Dao et al. 2022, section 3.1). Memory is O(length · K), with temporary tensors of
O(length · block).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.attention.cpu.differentiable import FusedCall, run
from hf_posswap.attention.cpu.strided import fused
from hf_posswap.attention.inputs import AttentionInputs, bias_dtype, repeat_heads
from hf_posswap.attention.visibility import Segment
from hf_posswap.common.content_biases import ClippedContentBias

BAND_BLOCK = 64
"""Queries per block; one matrix product gives the scores of a block with the keys of all its bands."""
NEAR_QUERIES = 256
"""Queries whose bands are in memory at the same time, in float32: a multiple of `BAND_BLOCK`."""
SUM_CHANNELS = 8
"""Extra channels in the backward pass. Two of them are used; head dimensions of kernels should be multiples of 8."""


def can_band(bias: ClippedContentBias, segments: Sequence[Segment]) -> bool:
    """Return whether every segment is a separate causal text, so that distances are differences of indices."""
    return bias.reach is not None and all(
        s.first == s.start and s.last == s.stop and (s.least, s.most) == (0, None) for s in segments
    )


def banded_attention(inputs: AttentionInputs, bias: ClippedContentBias, segments: Sequence[Segment]) -> Tensor:
    """Return the context (B, H, L, D), value vectors included if there are any; zeros for queries that see no key.

    Args:
        inputs: the attention call.
        bias: a bias for which `can_band` returns True.
        segments: the keys that each query sees.
    """
    if len(segments) == 1 and segments[0].stop - segments[0].start == inputs.query_length:
        return _text(inputs.q, inputs.k, inputs.v, bias, inputs.scaling)
    batch, heads, length, dim = inputs.q.shape
    context = inputs.q.new_zeros(batch, heads, length, dim)
    for segment in segments:
        rows, queries = segment.batch, slice(segment.start, segment.stop)
        q, k, v, asking = (x[rows, :, queries] for x in (inputs.q, inputs.k, inputs.v, bias.query))
        context[rows, :, queries] = _text(q, k, v, replace(bias, query=asking), inputs.scaling)
    return context


def _text(q: Tensor, k: Tensor, v: Tensor, bias: ClippedContentBias, scaling: float) -> Tensor:
    """Return the context of one causal text; `bias.query` holds the queries that are multiplied with the vectors."""
    assert bias.reach is not None
    reach, length = bias.reach, q.shape[2]
    far = None
    if length > reach:
        far = run(CausalAttention(scaling), q[:, :, reach:], k[:, :, :-reach], v[:, :, :-reach])
    parts = []
    for start in range(0, length, NEAR_QUERIES):
        stop = min(start + NEAR_QUERIES, length)
        parts.append(_joined(QueryBlock(start, stop, q, k, v, scaling), bias, far))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


class QueryBlock(NamedTuple):
    """The queries start…stop−1 of a causal text, with q (B, H, L, D) and k and v (B, Hkv, L, D) of the whole text."""

    start: int
    stop: int
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float


def _joined(part: QueryBlock, bias: ClippedContentBias, far: tuple[Tensor, ...] | None) -> Tensor:
    """Return the context of a block of queries: its band combined with the keys before the band.

    Args:
        part: the queries.
        bias: the bias of the whole text.
        far: context and log-sum-exps of the queries from `reach` on over the keys before their bands.
    """
    start, stop, q, k, v, scaling = part
    assert bias.reach is not None
    reach, exact = bias.reach, bias_dtype(q)
    lead = min(start, reach - 1)
    q = q[:, :, start:stop].to(exact)
    k, v = (x[:, :, start - lead : stop].to(exact) for x in (k, v))
    band = Band(q.shape[1] // k.shape[1], stop - start, reach, lead)
    near = band.scores(q, k) * scaling
    vectors = bias.table.to(exact)[1 : reach + 1] - bias.table.to(exact)[0]
    near = (near + bias.queries(start, stop).to(exact) @ vectors.t()).masked_fill(
        band.before_the_text(q.device), float("-inf")
    )
    total = near.logsumexp(-1)
    hidden = min(max(0, reach - start), stop - start)  # number of queries of this part without keys before their bands
    reached = far is not None and hidden < stop - start
    if far is not None and reached:
        far_context, far_sums = (x[:, :, start + hidden - reach : stop - reach] for x in far)
        total = torch.logaddexp(total, F.pad(far_sums, (hidden, 0), value=float("-inf")))
    weights = (near - total[..., None]).exp()
    context = band.weighted(weights, v)
    if bias.value_table is not None:
        context = context + weights @ bias.value_table.to(exact)[1 : reach + 1]
    if not reached:
        return context.to(part.q.dtype)
    share = (far_sums - total[:, :, hidden:]).exp()[..., None]
    beyond = share * far_context
    if bias.value_table is not None:
        beyond = beyond + share * bias.value_table.to(exact)[0]
    return (context + F.pad(beyond, (0, 0, hidden, 0))).to(part.q.dtype)


class Band:
    """The pairs of query i and key j with 0 ≤ i − j < reach, as (…, L, reach): column c is the key i − (reach − 1) + c.

    Queries are taken in blocks. The products of a block with the keys of all its bands are a matrix in which the band
    of each row begins one column after that of the row above. If the same memory is read with rows that are one element
    longer, all bands begin in the same column.

    Args:
        sharing: query heads per key head.
        length: L.
        reach: number of distances.
        lead: number of keys before the first query, less than `reach`.
    """

    def __init__(self, sharing: int, length: int, reach: int, lead: int) -> None:
        self.sharing, self.length, self.reach, self.lead = sharing, length, reach, lead
        self.count = -(-length // BAND_BLOCK)
        self.width = BAND_BLOCK + reach - 1

    def before_the_text(self, device: torch.device) -> Tensor:
        """Return a boolean tensor (L, reach): whether a column is before the first key of the text."""
        columns = torch.arange(self.reach, device=device)
        return torch.arange(self.length, device=device)[:, None] + columns < self.reach - 1 - self.lead

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return q·k within the band, (B, H, L, reach)."""
        products = self._blocks(q) @ self._windows(k)
        rows = products.unflatten(3, (-1, BAND_BLOCK)).flatten(-2)
        bands = F.pad(rows, (0, BAND_BLOCK)).unflatten(-1, (BAND_BLOCK, self.width + 1))[..., : self.reach]
        return self._texts(bands)

    def weighted(self, weights: Tensor, v: Tensor) -> Tensor:
        """Return the sums of values (B, Hkv, lead + L, D) with weights (B, H, L, reach), as (B, H, L, D)."""
        bands = self._blocks(weights).unflatten(3, (-1, BAND_BLOCK))
        rows = F.pad(bands, (0, self.width + 1 - self.reach)).flatten(-2)[..., : BAND_BLOCK * self.width]
        products = rows.unflatten(-1, (BAND_BLOCK, self.width)).flatten(3, 4) @ self._windows(v).mT
        return self._texts(products.unflatten(3, (-1, BAND_BLOCK)))

    def _blocks(self, x: Tensor) -> Tensor:
        """Reshape (B, H, L, n) to (B, Hkv, blocks, query heads per key head · block, n)."""
        padded = F.pad(x, (0, 0, 0, self.count * BAND_BLOCK - self.length))
        split = padded.unflatten(2, (self.count, BAND_BLOCK)).unflatten(1, (-1, self.sharing))
        return split.transpose(2, 3).flatten(3, 4)

    def _texts(self, x: Tensor) -> Tensor:
        """Reshape (B, Hkv, blocks, query heads per key head, block, n) to (B, H, L, n)."""
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, : self.length]

    def _windows(self, x: Tensor) -> Tensor:
        """Return the keys or values of the bands of each block: (B, Hkv, lead + L, D) → (B, Hkv, blocks, D, width)."""
        padded = F.pad(x, (0, 0, self.reach - 1 - self.lead, self.count * BAND_BLOCK - self.length))
        return padded.unfold(2, self.width, BAND_BLOCK)


@dataclass(frozen=True)
class CausalAttention(FusedCall):
    """Fused causal attention of q, k and v on a CPU: returns the context and the log-sum-exps of the scores (B, H, L).

    Attributes:
        scaling: factor on q·k.
    """

    scaling: float
    results: ClassVar[int] = 2

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See `FusedCall.forward`."""
        q, k, v = tensors
        return fused(q, k, v, None, self.scaling)

    def backward(
        self, grads: Sequence[Tensor], tensors: Sequence[Tensor], kept: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """See `FusedCall.backward`.

        The gradient of a score is P·(dO·v − dO·O + dsum). The kernel computes P·(dO·v − dO·O). To add dsum, dO gets
        extra channels that hold dsum; the values of these channels are 1 and their outputs are passed as 0. dsum is
        split into two parts, because half precision cannot hold it exactly.
        """
        (grad, grad_sums), (q, k, v), (context, sums) = grads, tensors, kept
        high = grad_sums.to(q.dtype)
        low = (grad_sums - high).to(q.dtype)
        wide_grad = F.pad(grad, (0, SUM_CHANNELS))
        wide_grad[..., -2], wide_grad[..., -1] = high, low
        wide_v = F.pad(v, (0, SUM_CHANNELS))
        wide_v[..., -2:] = 1
        wide_q, wide_k, wide_context = (F.pad(x, (0, SUM_CHANNELS)) for x in (q, k, context))
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            wide_grad, wide_q, wide_k, wide_v, wide_context, sums, 0.0, True, scale=self.scaling
        )
        return [x[..., : q.shape[-1]] for x in gradients]

    def written_out(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See `FusedCall.written_out`."""
        q, k, v = tensors
        exact, heads = bias_dtype(q), q.shape[1]
        scores = q.to(exact) @ repeat_heads(k, heads).to(exact).mT * self.scaling
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        context = torch.softmax(scores, dim=-1) @ repeat_heads(v, heads).to(exact)
        return context.to(q.dtype), scores.logsumexp(-1)

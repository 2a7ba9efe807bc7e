"""One random bias of each kind, the same bias as a formula of (batch, head, query, key), and calls to put it in."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_posswap.attention.dispatch import path_of_call
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.paths import Call, folded
from hf_posswap.common.biases import Bias, DenseBias, LinearBias, RelativeBias, SeparableBias
from hf_posswap.common.content_biases import ClippedContentBias, RelativeContentBias
from hf_posswap.common.summed_bias import SummedBias
from tests.oracles.loops import dot, loop_attention

KINDS = (
    "linear",
    "relative",
    "separable",
    "clipped content",
    "relative content",
    "summed",
    "summed with factors",
    "dense",
)
CALLS = (
    "causal",
    "boolean mask",
    "additive mask",
    "infinite mask",
    "decode",
    "chunk",
    "static cache",
    "encoder",
    "encoder mask",
)
CLIP = 3

Formula = Callable[[int, int, int, int], float]


@dataclass(frozen=True)
class BiasedCall:
    """An attention call, a bias, the bias as a formula of (b, h, i, j), and what each query may see (B, Lq, Lk)."""

    inputs: AttentionInputs
    bias: Bias
    formula: Formula
    visible: Tensor

    def expected(self) -> Tensor:
        """Return the context (B, H, Lq, d) of a float64 loop; queries that see nothing give zeros."""
        q, k, v = (x.detach().double().numpy() for x in (self.inputs.q, self.inputs.k, self.inputs.v))
        group = q.shape[1] // k.shape[1]

        def score_in(b: int) -> Callable[[int, int, int], float]:
            return lambda h, i, j: dot(q[b, h, i], k[b, h // group, j]) * self.inputs.scaling + self.formula(b, h, i, j)

        rows = [loop_attention(q[b], k[b], v[b], self.visible[b].tolist(), score_in(b)) for b in range(len(q))]
        return torch.from_numpy(np.stack(rows))

    def assert_close(self, context: Tensor, **tolerance: float) -> None:
        """Assert that nothing is NaN, and that queries that see a key agree with the loop."""
        assert context.isfinite().all()
        sees = self.visible.any(-1)
        actual, expected = (x.detach().double().transpose(1, 2)[sees] for x in (context, self.expected()))
        torch.testing.assert_close(actual, expected, **tolerance)


def make_biased_call(
    kind: str,
    call: str,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 6,
    length: int = 11,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
) -> BiasedCall:
    """Make a random call.

    - causal, encoder: no mask. static cache: no mask either, but more keys than queries, the last ones unused.
    - boolean, additive (its hidden entries at the dtype's minimum), infinite mask: causal, the first of two rows
      padded by 3 on the left, so that its first 3 queries see nothing. encoder mask: boolean, padded on the right.
    - chunk: the last 4 queries, the other keys cached. decode: the last query.
    """
    queries = {"decode": 1, "chunk": 4}.get(call, length)
    keys = length + 3 if call == "static cache" else length
    offset = 0 if call == "static cache" else keys - queries
    q = torch.randn(2, heads[0], queries, head_dim).to(dtype)
    k, v = (torch.randn(2, heads[1], keys, head_dim).to(dtype) for _ in range(2))
    causal = not call.startswith("encoder")
    visible = torch.ones(2, keys, keys, dtype=torch.bool)
    visible = (visible.tril() if causal else visible)[:, offset : offset + queries].clone()
    if call in ("boolean mask", "additive mask", "infinite mask", "chunk"):
        visible[0, :, :3] = False
    if call == "encoder mask":
        visible[0, :, -3:] = False
    inputs = AttentionInputs(q, k, v, mask_of(call, visible, dtype), causal, head_dim**-0.5, dropout)
    return BiasedCall(inputs, *make_bias(kind, inputs, offset), visible)


def mask_of(call: str, visible: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the mask that transformers would pass, (B, 1, Lq, Lk)."""
    mask = visible[:, None]
    if call in ("additive mask", "infinite mask"):
        hidden = torch.finfo(dtype).min if call == "additive mask" else float("-inf")
        return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, hidden)
    return mask if call in ("boolean mask", "chunk", "encoder mask") else None


def make_bias(kind: str, inputs: AttentionInputs, offset: int) -> tuple[Bias, Formula]:
    """Return a random bias of a kind and the same as a float64 formula."""
    batch, heads, queries, dim = inputs.q.shape
    keys, scaling = inputs.key_length, inputs.scaling
    distances = torch.arange(1 - keys, queries) + offset
    if kind == "linear":
        slopes = torch.rand(heads) * 2
        m = slopes.double().tolist()
        return LinearBias(slopes, distances, queries, keys), lambda b, h, i, j: -m[h] * (i + offset - j)
    if kind == "relative":
        values = torch.randn(heads, queries + keys - 1)
        table = values.double().tolist()
        return RelativeBias(values, queries, keys), lambda b, h, i, j: table[h][i - j + keys - 1]
    if kind == "separable":
        left, right = torch.randn(heads, queries, 5), torch.randn(heads, keys, 5)
        a, c = left.double().numpy(), right.double().numpy()
        return SeparableBias(left, right), lambda b, h, i, j: dot(a[h, i], c[h, j])
    if kind.startswith("summed"):
        steps = torch.rand(batch, heads, keys)
        factors = torch.rand(batch, heads, queries) * 2 if kind == "summed with factors" else None
        bias = SummedBias(steps, offset, queries, factors)
        t, f = steps.double(), torch.ones(batch, heads, queries) if factors is None else factors.double()
        return (
            bias,
            lambda b, h, i, j: -float(f[b, h, i] * t[b, h, min(i + offset, j) + 1 : max(i + offset, j) + 1].sum()),
        )
    query = inputs.q.float() * scaling
    x = inputs.q.detach().double().numpy() * scaling
    if kind == "clipped content":
        vectors = torch.randn(2 * CLIP + 1, dim)
        w = vectors.double().numpy()

        def index_rows(start: int, stop: int) -> Tensor:
            delta = torch.arange(start, stop)[:, None] + offset - torch.arange(keys)
            return (delta.clamp(-CLIP, CLIP) + CLIP)[None]

        return ClippedContentBias(query, vectors, index_rows), lambda b, h, i, j: dot(
            x[b, h, i], w[max(-CLIP, min(CLIP, i + offset - j)) + CLIP]
        )
    if kind == "relative content":
        vectors = torch.randn(heads, queries + keys - 1, dim)
        w = vectors.double().numpy()
        return RelativeContentBias(query, vectors, keys), lambda b, h, i, j: dot(x[b, h, i], w[h, i - j + keys - 1])
    rows = torch.randn(batch, heads, queries, keys)
    r = rows.double().numpy()
    return DenseBias(lambda start, stop: rows[:, :, start:stop]), lambda b, h, i, j: float(r[b, h, i, j])


def fold_for_flash(inputs, bias, mix, backend):
    """The call that a flash kernel would get, or the refusal."""
    call = Call(inputs, bias, mix, meant_for="cuda")
    path_of_call(call, backend)
    return folded(call)

"""Gradients through every bias kind, against float64 autograd of attention written out."""

import pytest
import torch

from hf_posswap.attention import attend
from hf_posswap.attention.folding import fold_linear
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.sdpa import plain_attention
from hf_posswap.biases import LinearBias
from tests.attention.kinds import KINDS, make_biased_call
from tests.reference import dense_attention

LEARNED = {
    "linear": ("slopes",),
    "relative": ("values",),
    "separable": ("left", "right"),
    "clipped content": ("table", "query"),
    "relative content": ("table", "query"),
    "dense": (),
}


def gradients(context, leaves, weights):
    return torch.autograd.grad((context.double() * weights).sum(), leaves)


@pytest.mark.parametrize("learn_bias", [False, True])
@pytest.mark.parametrize("call", ["causal", "boolean mask", "encoder"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_the_written_out_ones(kind, call, learn_bias):
    biased = make_biased_call(kind, call)
    inputs, bias = biased.inputs, biased.bias
    leaves = [inputs.q, inputs.k, inputs.v]
    if learn_bias:
        leaves += [getattr(bias, name).detach() for name in LEARNED[kind]]
        bias = type(bias)(**{**vars(bias), **dict(zip(LEARNED[kind], leaves[3:], strict=True))})
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.randn(inputs.q.shape, dtype=torch.float64) * biased.visible.any(-1)[:, None, :, None]
    rows = bias.rows(0, inputs.query_length)
    if not learn_bias:
        rows = rows.detach()
    visible = (biased.visible | ~biased.visible.any(-1, keepdim=True))[:, None]  # no NaN where a query sees nothing
    truth = dense_attention(inputs.q, inputs.k, inputs.v, rows, visible, inputs.scaling)
    expected = gradients(truth, leaves, weights)
    for backend in ("eager", "sdpa"):
        actual = gradients(attend(inputs, bias, None, backend)[0], leaves, weights)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)  # float32, a second pass of sums over it


def test_slopes_learn_through_folding_as_through_the_written_out_bias():
    biased = make_biased_call("linear", "causal", length=32)
    slopes = biased.bias.slopes.requires_grad_()
    weights = torch.randn(biased.inputs.q.shape, dtype=torch.float64)
    folded = plain_attention(fold_linear(biased.inputs, biased.bias))[..., : biased.inputs.v.shape[-1]]
    rows = biased.bias.rows(0, 32)
    q, k, v = biased.inputs.q, biased.inputs.k, biased.inputs.v
    truth = dense_attention(q, k, v, rows, biased.visible[:, None], biased.inputs.scaling)
    torch.testing.assert_close(folded.double(), truth, atol=1e-5, rtol=1e-5)
    (actual,), (expected,) = gradients(folded, [slopes], weights), gradients(truth, [slopes], weights)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [64, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_slopes_learn_in_half_precision(dtype, length):
    q, k, v = (torch.randn(1, 4, length, 32).to(dtype) for _ in range(3))
    slopes = (0.25 ** torch.arange(1.0, 5.0)).requires_grad_()
    bias = LinearBias(slopes, torch.arange(1 - length, length), length, length)
    weights = torch.randn(q.shape, dtype=torch.float64)
    context = attend(AttentionInputs(q, k, v, None, True, 32**-0.5), bias, None, "sdpa")[0]
    (actual,) = gradients(context, [slopes], weights)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    truth = dense_attention(q, k, v, bias.rows(0, length), visible, 32**-0.5)
    (expected,) = gradients(truth, [slopes], weights)
    # Half precision rounds every score's gradient by 2^−9; a folded bias would be off by tens of per cent at 1024.
    torch.testing.assert_close(actual, expected, atol=0.01 * expected.abs().max().item(), rtol=0.01)

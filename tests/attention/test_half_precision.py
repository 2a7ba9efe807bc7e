"""In half precision a bias costs no accuracy: errors stay near those that attention has without one."""

import pytest
import torch
from torch.nn import functional as F

from hf_posswap.attention import attend
from hf_posswap.attention.inputs import AttentionInputs
from tests.attention.kinds import KINDS, make_bias
from tests.reference import dense_attention


def stock_attention(inputs, backend):
    """Attention as transformers computes it without a bias: fused, or scores in the dtype and softmax in float32."""
    k, v = (x.repeat_interleave(3, dim=1) for x in (inputs.k, inputs.v))
    if backend == "sdpa":
        return F.scaled_dot_product_attention(inputs.q, k, v, is_causal=inputs.causal, scale=inputs.scaling)
    scores = inputs.q @ k.transpose(-1, -2) * inputs.scaling
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


def relative_error(context, truth):
    return ((context.double() - truth).square().mean() / truth.square().mean()).sqrt()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_worse_than_stock_attention(kind, backend, dtype):
    length = 300
    q, k, v = (torch.randn(1, heads, length, 64).to(dtype) for heads in (9, 3, 3))
    inputs = AttentionInputs(q, k, v, None, True, 64**-0.5)
    bias, _ = make_bias(kind, inputs, 0)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    stock_truth = dense_attention(q, k, v, torch.zeros(1), visible, inputs.scaling)
    truth = dense_attention(q, k, v, bias.rows(0, length), visible, inputs.scaling)
    stock = relative_error(stock_attention(inputs, backend), stock_truth)
    actual = attend(inputs, bias, None, backend)[0]
    assert actual.dtype == dtype
    assert relative_error(actual, truth) < 1.5 * stock


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("hidden", [torch.finfo(torch.float16).min, float("-inf")])
def test_a_padded_row_does_not_overflow_in_float16(hidden, backend):
    q, k, v = (torch.randn(1, heads, 6, 8).half() for heads in (9, 3, 3))
    mask = torch.full((1, 1, 6, 6), hidden).triu(1).half()
    mask[..., :4, :] = hidden  # four queries that see nothing
    inputs = AttentionInputs(q, k, v, mask, True, 8**-0.5)
    for kind in KINDS:
        context = attend(inputs, make_bias(kind, inputs, 0)[0], None, backend)[0]
        assert context.isfinite().all()

"""A linear bias in extra channels: exact in half precision, with the head dimensions that fused kernels want."""

import pytest
import torch
from torch.nn import functional as F

from hf_posswap.attention.folding import LONGEST_EXACT, can_fold, fold_linear, fold_separable, split_parts
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.biases import LinearBias, SeparableBias
from hf_posswap.errors import BackendError
from hf_posswap.schemes.alibi import alibi_slopes
from tests.attention.kinds import fold_for_flash
from tests.reference import dense_attention

HALF = [torch.bfloat16, torch.float16]


def folded_bias(dtype, head_dim, keys, slopes, queries=2):
    """The bias that the extra channels add to the scaled scores, in float64: (H, Lq, Lk)."""
    heads = len(slopes)
    q, k = torch.zeros(1, heads, queries, head_dim, dtype=dtype), torch.zeros(1, 1, keys, head_dim, dtype=dtype)
    inputs = AttentionInputs(q, k, k, None, True, head_dim**-0.5)
    folded = fold_linear(inputs, LinearBias(slopes, torch.arange(1 - keys, queries), queries, keys))
    return (folded.q.double() @ folded.k.double().transpose(-1, -2) * inputs.scaling)[0]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("keys", [1, 256, 257, 8192, LONGEST_EXACT])
@pytest.mark.parametrize("head_dim", [64, 72])
def test_channels_hold_slope_times_position_exactly(dtype, keys, head_dim):
    slopes = torch.cat([alibi_slopes(12), torch.tensor([0.3, 1e-3, 1.7])])
    expected = slopes.double()[:, None, None] * torch.arange(1 - keys, 1, dtype=torch.float64)
    error = (folded_bias(dtype, head_dim, keys, slopes) - expected).abs()
    # Three parts hold a slope to 2^−23 of itself; float16's smallest part is 2^−24, against the unscaled slope.
    smallest = 2.0**-24 * head_dim**-0.5 if dtype == torch.float16 else 0.0
    allowed = (slopes.double()[:, None, None] * 2**-23 + smallest) * torch.arange(keys - 1, -1, -1)
    assert (error <= allowed).all()


def test_two_parts_of_a_slope_would_not_do():
    parts = split_parts(torch.tensor([1 / 3]), torch.bfloat16, 3)
    errors = [abs(sum(part.double() for part in parts[:n]).item() - torch.tensor([1 / 3]).item()) for n in (1, 2, 3)]
    assert errors[0] > 1e-4
    assert errors[1] > 1e-7
    assert errors[2] < 2e-8


@pytest.mark.parametrize(("head_dim", "grown"), [(64, 72), (58, 64), (59, 72), (128, 136), (5, 16)])
def test_head_dimension_grows_to_a_multiple_of_8(head_dim, grown):
    q, k = torch.randn(2, 4, 7, head_dim), torch.randn(2, 2, 7, head_dim)
    folded = fold_linear(
        AttentionInputs(q, k, k, None, True, 1.0), LinearBias(torch.ones(4), torch.arange(-6, 7), 7, 7)
    )
    assert [x.shape[-1] for x in (folded.q, folded.k, folded.v)] == [grown] * 3
    assert torch.equal(folded.v[..., :head_dim], k)
    assert not folded.v[..., head_dim:].any()
    assert folded.k.shape[1] == 2, "grouped keys stay grouped"


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("head_dim", [64, 72])
def test_attention_over_8192_keys_is_as_good_as_without_a_bias(dtype, head_dim):
    queries, keys = 64, 8192
    q, k, v = (torch.randn(1, heads, n, head_dim).to(dtype) for heads, n in ((4, queries), (2, keys), (2, keys)))
    bias = LinearBias(alibi_slopes(4) / 16, torch.arange(1 - keys, queries) + keys - queries, queries, keys)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    inputs = AttentionInputs(q, k, v, None, True, head_dim**-0.5)
    folded = fold_for_flash(inputs, bias, None, "flash_attention_2")

    def error(call, rows):
        k_all, v_all = (x.repeat_interleave(2, dim=1) for x in (call.k, call.v))
        context = F.scaled_dot_product_attention(call.q, k_all, v_all, attn_mask=visible, scale=call.scaling)
        truth = dense_attention(q, k, v, rows, visible, inputs.scaling)
        return (context[..., :head_dim].double() - truth).square().mean().sqrt() / truth.square().mean().sqrt()

    assert error(folded, bias.rows(0, queries)) < 1.5 * error(inputs, torch.zeros(1))


@pytest.mark.parametrize("dtype", HALF)
def test_more_keys_than_the_channels_can_count_are_not_folded(dtype):
    inputs = AttentionInputs(*[torch.zeros(1, 1, 2, 8, dtype=dtype)] * 3, None, True, 1.0)
    bias = LinearBias(torch.ones(1), torch.arange(3), 2, LONGEST_EXACT + 1)
    assert not can_fold(bias, dtype)
    assert can_fold(bias, torch.float32)
    with pytest.raises(BackendError, match="eager, sdpa, flex_attention"):
        fold_for_flash(inputs, bias, None, "flash_attention_2")


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_separable_bias_folds(heads):
    q, k = torch.randn(2, heads[0], 5, 6), torch.randn(2, heads[1], 9, 6)
    bias = SeparableBias(torch.randn(4, 5, 3), torch.randn(4, 9, 3))
    inputs = AttentionInputs(q, k, k, None, False, 6**-0.5)
    folded = fold_separable(inputs, bias)
    plain = q.double() @ k.double().repeat_interleave(4 // heads[1], 1).transpose(-1, -2) * inputs.scaling
    actual = folded.q.double() @ folded.k.double().transpose(-1, -2) * inputs.scaling
    torch.testing.assert_close(actual, plain + bias.rows(0, 5).double(), atol=1e-6, rtol=1e-6)
    assert folded.q.shape[-1] == 16

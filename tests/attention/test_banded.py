"""Shaw as a band beside plain attention equals Shaw written out, forward and backward."""

import pytest
import torch

from hf_posswap.attention import attend, paths
from hf_posswap.attention.cpu import banded
from hf_posswap.attention.cpu.banded import CausalAttention
from hf_posswap.attention.cpu.differentiable import run
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.shaw import ShawConfig
from tests.reference import build, layer_bias, model_facts

LENGTHS = (3, 4, 63, 64, 65, 130)


def shaw(length, reach=3, values=True, mask=None, dtype=torch.float32, batch=2):
    """A random call of a Shaw layer: inputs, bias, mix and the layer."""
    facts = model_facts()
    _, layer = build(ShawConfig(max_distance=reach, values=values), facts)
    q = torch.randn(batch, 4, length, 8).to(dtype)
    k, v = (torch.randn(batch, 2, length, 8).to(dtype) for _ in range(2))
    steps = torch.arange(length)[None]
    positions = Positions(steps, steps, 0, True)
    inputs = AttentionInputs(*(x.requires_grad_() for x in (q, k, v)), mask, True, 8**-0.5)
    mix = (lambda weights, start: layer.mix(weights, start, positions, None)) if values else None
    return inputs, layer_bias(layer, inputs.q, positions, None, inputs.scaling), mix, layer


@pytest.fixture
def only_bands(monkeypatch):
    """The slow paths are not taken."""
    monkeypatch.setattr(paths, "mixed_attention", None)
    monkeypatch.setattr(paths, "blockwise_attention", None)


@pytest.mark.parametrize(("reach", "together"), [(1, 256), (3, 256), (16, 256), (3, 64), (16, 64), (100, 64)])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.usefixtures("only_bands")
def test_band_equals_eager_attention_with_its_gradients(length, values, reach, together, monkeypatch):
    monkeypatch.setattr(banded, "NEAR_QUERIES", together)
    inputs, bias, mix, layer = shaw(length, reach, values)
    leaves = [inputs.q, inputs.k, inputs.v, *layer.parameters()]
    weights = torch.randn(inputs.q.shape)
    results = []
    for backend in ("sdpa", "eager"):
        context = attend(inputs, bias, mix, backend)[0]
        results.append((context, torch.autograd.grad((context * weights).sum(), leaves, retain_graph=True)))
    (actual, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["left padding", "packed"])
@pytest.mark.usefixtures("only_bands")
def test_padding_and_packing_are_texts_of_their_own(form):
    length = 40
    i, j = torch.arange(length)[:, None], torch.arange(length)
    starts = torch.tensor([[0], [7]]) if form == "left padding" else torch.where(j < 13, 0, 13).expand(2, -1)
    mask = (i >= j) & (j >= starts[:, :, None])
    inputs, bias, mix, _ = shaw(length, mask=mask[:, None])
    sees = mask.any(-1)[:, None, :, None]
    actual, expected = (attend(inputs, bias, mix, backend)[0] * sees for backend in ("sdpa", "eager"))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("call", ["decode", "window"])
def test_what_is_no_whole_causal_text_takes_the_blocks(call):
    length = 40
    mask = None
    if call == "window":
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril().triu(-9)
    inputs, bias, mix, _ = shaw(length, mask=mask)
    if call == "decode":
        inputs, bias, mix, _ = shaw(1)
    actual, expected = (attend(inputs, bias, mix, backend)[0] for backend in ("sdpa", "eager"))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_in_half_precision_it_errs_no_more_than_eager_attention():
    inputs, bias, mix, _ = shaw(200, 16, dtype=torch.bfloat16)
    exact = AttentionInputs(inputs.q.float(), inputs.k.float(), inputs.v.float(), None, True, inputs.scaling)
    truth = attend(exact, bias, mix, "eager")[0].double()
    errors = [(attend(inputs, bias, mix, b)[0].double() - truth).square().mean() for b in ("sdpa", "eager")]
    assert errors[0] <= 1.5 * errors[1]


def test_gradients_flow_through_the_sums_of_scores():
    q, k, v = (torch.randn(2, heads, 17, 8, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2))
    hidden = torch.ones(17, 17, dtype=torch.bool).triu(1)
    scores = (q @ k.repeat_interleave(2, 1).mT * 0.3).masked_fill(hidden, float("-inf"))
    expected = (scores.softmax(-1) @ v.repeat_interleave(2, 1), scores.logsumexp(-1))
    actual = run(CausalAttention(0.3), q, k, v)
    weights = [torch.randn_like(x) for x in expected]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(*(torch.autograd.grad(x, (q, k, v), weights) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(a, b)

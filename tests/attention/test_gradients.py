"""Gradients through every bias kind, against float64 autograd of attention written out."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hf_posswap.attention import attend
from hf_posswap.attention.cpu import learned
from hf_posswap.attention.cpu.banded import CausalAttention
from hf_posswap.attention.cpu.differentiable import run
from hf_posswap.attention.cpu.learned import learned_relative_attention
from hf_posswap.attention.dispatch import path_of_call
from hf_posswap.attention.folding import fold_linear
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.paths import Call
from hf_posswap.attention.sdpa import plain_attention
from hf_posswap.common.biases import LinearBias, RelativeBias
from tests.attention.kinds import KINDS, make_biased_call
from tests.reference import dense_attention

LEARNED = {
    "linear": ("slopes",),
    "relative": ("values",),
    "separable": ("left", "right"),
    "clipped content": ("table", "query"),
    "relative content": ("table", "query"),
    "summed": ("steps",),
    "summed with factors": ("steps", "factors"),
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
        bias = replace(bias, **dict(zip(LEARNED[kind], leaves[3:], strict=True)))
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


LEARNED_CALLS = {
    # batch, heads, key heads, queries, keys, causal
    "causal": (2, 4, 4, 37, 37, True),
    "causal, shared key heads": (3, 6, 2, 37, 37, True),
    "causal, one key head": (2, 4, 1, 37, 37, True),
    "causal, empty cache behind": (2, 4, 2, 21, 30, True),
    "one query": (2, 4, 2, 1, 23, True),
    "encoder": (2, 4, 4, 37, 37, False),
    "encoder, cached offset": (3, 6, 2, 19, 41, False),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 rows of scores and tiles of one key head: several ragged blocks and groups in a short text."""
    monkeypatch.setattr(learned, "BLOCK_ROWS", 8)
    monkeypatch.setattr(learned, "TILE_ELEMENTS", 1)


def learned_call(call, dtype, device="cpu"):
    """A call laid out as in a model (heads after length in memory), its leaves, values in float32 or better."""
    batch, heads, key_heads, queries, keys, causal = LEARNED_CALLS[call]
    shapes = [(batch, queries, heads, 6), (batch, keys, key_heads, 6), (batch, keys, key_heads, 6)]
    q, k, v = (torch.randn(shape, device=device).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes)
    values = torch.randn(heads, queries + keys - 1, device=device, dtype=torch.promote_types(dtype, torch.float32))
    bias = RelativeBias(values.requires_grad_(), queries, keys)
    return AttentionInputs(q, k, v, None, causal, 0.3), bias, (q, k, v, values)


def written_out(inputs, bias, leaves, grad):
    """The context and the gradients in float64."""
    visible = torch.ones(inputs.query_length, inputs.key_length, dtype=torch.bool, device=grad.device)
    if inputs.implicit_causal:
        visible = visible.tril()
    rows = bias.rows(0, inputs.query_length)
    context = dense_attention(inputs.q, inputs.k, inputs.v, rows, visible, inputs.scaling)
    return context, torch.autograd.grad(context, leaves, grad.double())


@pytest.mark.parametrize("tile", [1, 400, 2**19], ids=["a key head", "some heads", "everything"])
@pytest.mark.parametrize("call", LEARNED_CALLS)
def test_learned_values_get_the_written_out_gradient(call, tile, monkeypatch):
    monkeypatch.setattr(learned, "BLOCK_ROWS", 8)
    monkeypatch.setattr(learned, "TILE_ELEMENTS", tile)
    inputs, bias, leaves = learned_call(call, torch.float64)
    context = learned_relative_attention(inputs, bias)
    grad = torch.randn_like(context)
    expected_context, expected = written_out(inputs, bias, leaves, grad)
    torch.testing.assert_close(context, expected_context, atol=1e-13, rtol=1e-12)
    for a, b in zip(torch.autograd.grad(context, leaves, grad), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", LEARNED_CALLS)
@pytest.mark.usefixtures("small_blocks")
def test_learned_values_get_a_float32_gradient_in_any_dtype(call, dtype):
    inputs, bias, leaves = learned_call(call, dtype)
    context = learned_relative_attention(inputs, bias)
    grad = torch.randn_like(context)
    actual = torch.autograd.grad(context, leaves, grad)
    expected = written_out(inputs, bias, leaves, grad)[1]
    assert context.dtype == dtype
    # A result in half precision is one rounding off; in bfloat16, P and dS and each block's sums are rounded as well.
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-10}[dtype]
    for a, b in zip(actual[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b, atol=rounding * b.abs().max().item(), rtol=0)
    torch.testing.assert_close(actual[3], expected[3], atol=2e-6 * expected[3].abs().max().item(), rtol=0)


class ProductCounter(TorchDispatchMode):
    """Counts the multiplications in batched matrix products."""

    def __init__(self):
        super().__init__()
        self.multiplications = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm_):
            self.multiplications += args[-2].numel() * args[-1].shape[-1]
        return func(*args, **(kwargs or {}))


def gradients_and_work(inputs, bias, leaves, grad):
    """The gradients of the leaves, and the multiplications in the backward pass's matrix products."""
    context = learned_relative_attention(inputs, bias)
    with ProductCounter() as counter:
        result = torch.autograd.grad(context, leaves, grad)
    return result, counter.multiplications


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_only_what_needs_a_gradient_is_computed(wanted):
    inputs, bias, leaves = learned_call("encoder, cached offset", torch.float32)
    grad = torch.randn_like(inputs.q)
    expected = written_out(inputs, bias, leaves, grad)[1]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i in wanted)
    actual, work = gradients_and_work(inputs, bias, [leaves[i] for i in wanted], grad)
    for i, a in zip(wanted, actual, strict=True):
        torch.testing.assert_close(a, expected[i], atol=2e-5, rtol=1e-5)
    products = 1 + any(i != 2 for i in wanted)  # for P, and for dP unless v alone learns
    products += sum(i != 3 for i in wanted)
    assert work == products * inputs.q.numel() * inputs.key_length


def test_the_future_is_skipped():
    length = 1024
    q, k, v = (torch.randn(1, 2, length, 8).requires_grad_() for _ in range(3))
    bias = RelativeBias(torch.randn(2, 2 * length - 1).requires_grad_(), length, length)
    inputs = AttentionInputs(q, k, v, None, True, 0.3)
    everything = gradients_and_work(replace(inputs, causal=False), bias, [q, k, v, bias.values], torch.ones_like(q))[1]
    causal = gradients_and_work(inputs, bias, [q, k, v, bias.values], torch.ones_like(q))[1]
    assert causal <= 0.57 * everything  # a half, and half a block of 128 queries


def test_small_gradients_survive_float16():
    inputs, bias, (*_, v, values) = learned_call("causal", torch.float16)
    q, k = ((x * factor).detach().requires_grad_() for x, factor in ((inputs.q, 64), (inputs.k, 1 / 64)))
    inputs = replace(inputs, q=q, k=k)
    grad = torch.randn_like(inputs.q) * 2**-13
    actual = torch.autograd.grad(learned_relative_attention(inputs, bias), [k, v, values], grad)
    expected = written_out(inputs, bias, [k, v, values], grad)[1]
    # dS is of the order of 2^−13/37, below float16's smallest normal number, 2^−14; its sum times queries is not.
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=2**-25, rtol=2**-10)


@pytest.mark.usefixtures("small_blocks")
def test_the_future_gets_no_gradient_and_an_expanded_gradient_is_taken():
    inputs, bias, (*_, values) = learned_call("causal", torch.float32)
    (gradient,) = torch.autograd.grad(learned_relative_attention(inputs, bias).sum(), [values], retain_graph=True)
    assert (gradient[:, : inputs.key_length - 1] == 0).all()
    ones = torch.ones_like(inputs.q)
    expected = torch.autograd.grad(learned_relative_attention(inputs, bias), [values], ones)[0]
    assert torch.equal(gradient, expected)


def sdpa_gradients(inputs, bias, leaves, grad):
    return torch.autograd.grad(attend(inputs, bias, None, "sdpa")[0], leaves, grad)


def test_the_sdpa_path_is_taken_exactly_when_the_values_learn():
    def path_of(inputs, bias):
        return path_of_call(Call(inputs, bias, None), "sdpa").words.endswith("vector per head, which learns")

    inputs, bias, _ = learned_call("causal", torch.float32)
    linear = LinearBias(torch.rand(4).requires_grad_(), torch.arange(-36, 37), 37, 37)
    assert path_of(inputs, bias)
    assert path_of(inputs, linear)
    assert path_of(replace(inputs, causal=False), bias)
    assert not path_of(inputs, RelativeBias(bias.values.detach(), 37, 37))
    assert not path_of(replace(inputs, dropout=0.1), bias)
    assert not path_of(replace(inputs, mask=torch.ones(2, 1, 37, 37, dtype=torch.bool).tril()), bias)
    with torch.no_grad():
        assert not path_of(inputs, bias)


def test_learned_values_work_under_checkpointing():
    inputs, bias, leaves = learned_call("causal, shared key heads", torch.float32)
    grad = torch.randn_like(inputs.q)

    def context(q, k, v, values):
        return attend(replace(inputs, q=q, k=k, v=v), replace(bias, values=values), None, "sdpa")[0]

    again = torch.autograd.grad(checkpoint(context, *leaves, use_reentrant=False), leaves, grad)
    for a, b in zip(again, sdpa_gradients(inputs, bias, leaves, grad), strict=True):
        assert torch.equal(a, b)


def test_a_backward_pass_inside_autocast_rounds_nothing():
    inputs, bias, leaves = learned_call("causal", torch.float32)
    context = attend(inputs, bias, None, "sdpa")[0]
    grad = torch.randn_like(context)
    expected = torch.autograd.grad(context, leaves, grad, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(context, leaves, grad)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def call_with_leaves(kind, call, learn_bias):
    """A call whose q, k and v learn, and the bias's tensors too; the truth's rows as a function of the leaves."""
    biased = make_biased_call(kind, call)
    inputs, bias = biased.inputs, biased.bias
    leaves = [inputs.q, inputs.k, inputs.v]
    names = LEARNED[kind] if learn_bias else ()
    leaves += [getattr(bias, name).detach() for name in names]
    visible = (biased.visible | ~biased.visible.any(-1, keepdim=True))[:, None]

    def attended(path, q, k, v, *learned):
        made = replace(bias, **dict(zip(names, learned, strict=True)))
        if path == "truth":
            return dense_attention(q, k, v, made.rows(0, inputs.query_length), visible, inputs.scaling)
        return attend(replace(inputs, q=q, k=k, v=v), made, None, path)[0].double()

    return attended, leaves, biased.visible.any(-1)[:, None, :, None].double()


def second_derivatives(attended, path, leaves, weights):
    """Gradients of a sum over first gradients, of a context that enters linearly and of one that does not."""
    result = []
    for power in (1, 2):
        loss = (attended(path, *leaves) ** power * weights).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        total = sum(gradient.double().sin().sum() for gradient in first)
        result += torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return result


@pytest.mark.parametrize("learn_bias", [False, True])
@pytest.mark.parametrize("call", ["causal", "boolean mask", "encoder"])
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_right_or_refused(kind, call, learn_bias):
    attended, leaves, weights = call_with_leaves(kind, call, learn_bias)
    for leaf in leaves:
        leaf.requires_grad_()
    expected = second_derivatives(attended, "truth", leaves, weights)
    for path in ("eager", "sdpa"):
        try:
            actual = second_derivatives(attended, path, leaves, weights)
        except (RuntimeError, NotImplementedError) as error:  # torch's own kernels, as in the stock model
            assert path == "sdpa" and "not implemented" in str(error)  # noqa: PT017, PT018
            continue
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double(), b.double(), atol=5e-4, rtol=1e-3)  # float32, differentiated twice


def test_second_derivatives_through_the_band_are_right():
    q, k, v, grad, grad_sums = (torch.randn(1, 2, 9, 8, requires_grad=True) for _ in range(5))
    call = CausalAttention(0.4)
    weights = torch.randn(9)

    def total(run_call, create_graph):
        context, sums = run_call(q, k, v)
        first = torch.autograd.grad(
            (context * grad).sum() + (sums.exp() * grad_sums[..., 0]).sum(), [q, k, v], create_graph=True
        )
        return torch.autograd.grad(sum((x.sin().sum(-1) * weights).sum() for x in first), [q, k, v, grad, grad_sums])

    for a, b in zip(total(lambda *x: run(call, *x), True), total(call.written_out, True), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learn_bias", [False, True])
@pytest.mark.parametrize("call", ["causal", "boolean mask", "encoder"])
@pytest.mark.parametrize("kind", KINDS)
def test_functional_gradients_are_the_same(kind, call, learn_bias):
    attended, leaves, weights = call_with_leaves(kind, call, learn_bias)
    places = tuple(range(len(leaves)))
    found = torch.func.grad(lambda *x: (attended("sdpa", *x) * weights).square().sum(), argnums=places)(*leaves)
    for leaf in leaves:
        leaf.requires_grad_()
    expected = torch.autograd.grad((attended("truth", *leaves) * weights).square().sum(), leaves, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(
            a.double(), torch.zeros_like(a).double() if b is None else b.double(), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("call", ["additive mask", "decode"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_learns_gets_a_gradient_while_it_shows_nothing_but_zero(kind, backend, call):
    biased = make_biased_call(kind, call)
    mask = biased.inputs.mask
    if mask is None:
        mask = torch.zeros(2, 1, *biased.visible.shape[1:])
    mask.requires_grad_()
    weights = torch.randn(biased.inputs.q.shape) * biased.visible.any(-1)[:, None, :, None]
    context = attend(replace(biased.inputs, mask=mask), biased.bias, None, backend)[0]
    (actual,) = torch.autograd.grad((context * weights).sum(), [mask])
    added = torch.zeros_like(mask, dtype=torch.float64).requires_grad_()
    rows = biased.bias.rows(0, biased.inputs.query_length) + added
    visible = (biased.visible | ~biased.visible.any(-1, keepdim=True))[:, None]
    truth = dense_attention(biased.inputs.q, biased.inputs.k, biased.inputs.v, rows, visible, biased.inputs.scaling)
    (expected,) = torch.autograd.grad((truth * weights).sum(), [added])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual.double(), expected * biased.visible[:, None], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_learned_values_get_the_same_gradient_when_compiled(backend):
    inputs, bias, leaves = learned_call("causal, shared key heads", torch.float32)
    grad = torch.randn_like(inputs.q)

    def context(q, k, v, values):
        return attend(replace(inputs, q=q, k=k, v=v), replace(bias, values=values), None, "sdpa")[0]

    compiled = torch.compile(context, fullgraph=True, backend=backend)
    actual = torch.autograd.grad(compiled(*leaves), leaves, grad)
    for a, b in zip(actual, sdpa_gradients(inputs, bias, leaves, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("call", LEARNED_CALLS)
@pytest.mark.usefixtures("small_blocks")
def test_learned_values_get_the_written_out_gradient_on_cuda(call, dtype):
    inputs, bias, leaves = learned_call(call, dtype, "cuda")
    context = learned_relative_attention(inputs, bias)
    grad = torch.randn_like(context)
    expected = written_out(inputs, bias, leaves, grad)[1]
    rounding = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2**-6}[dtype]
    for a, b in zip(torch.autograd.grad(context, leaves, grad), expected, strict=True):
        torch.testing.assert_close(a, b, atol=rounding * b.abs().max().item(), rtol=0)

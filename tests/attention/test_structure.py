"""What speed rests on, counted instead of timed: no large tensor on a fast path, nothing done again in every layer."""

import importlib
from dataclasses import replace

import pytest
import torch

import hf_posswap
from hf_posswap.attention import attend, flex, sdpa
from hf_posswap.attention.cpu import strided
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.benchmarking.memory import peak_bytes
from hf_posswap.common.biases import LinearBias, RelativeBias
from hf_posswap.common.positions import Positions
from hf_posswap.common.summed_bias import SummedBias
from hf_posswap.schemes import parse_scheme
from hf_posswap.swapped.cache_view import cache_keyword
from tests.attention.kinds import make_biased_call
from tests.attention.test_visibility import masks
from tests.matrix.cells import random_tokens, small_model
from tests.reference import FLOAT32, build, layer_bias, model_facts

LENGTH, HEADS, KEY_HEADS, DIM = 1024, 8, 2, 32
QUERIES = 4 * HEADS * LENGTH * DIM
"""Bytes of the queries in float32, 1 MiB; a bias of heads × length × length would be 32 of them."""


def inputs(mask=None, dtype=torch.float32, learns=False):
    q, k, v = (torch.randn(1, heads, LENGTH, DIM).to(dtype) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    if learns:
        q, k, v = (x.requires_grad_() for x in (q, k, v))
    return AttentionInputs(q, k, v, mask, True, DIM**-0.5)


def bias_of(kind, learns=False):
    if kind == "linear":
        return LinearBias(torch.rand(HEADS).requires_grad_(learns), torch.arange(1 - LENGTH, LENGTH), LENGTH, LENGTH)
    return RelativeBias(torch.randn(HEADS, 2 * LENGTH - 1).requires_grad_(learns), LENGTH, LENGTH)


def attended(call, bias, learns=False):
    """A function that attends, and goes back if anything learns."""

    def run():
        with torch.set_grad_enabled(learns):
            context = attend(call, bias, None, "sdpa")[0]
        if learns:
            context.backward(torch.ones_like(context))

    return run


@pytest.mark.parametrize("form", ["none", "left padding", "packed", "sliding window", "prefix"])
@pytest.mark.parametrize("kind", ["linear", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_allocates_a_few_times_the_queries(kind, form, dtype):
    mask = None if form == "none" else masks(LENGTH)[form][-1:, None]
    # Keys and values in reverse, the context, the vector, the kernel's own blocks; while a mask is read, half of it.
    assert peak_bytes(attended(inputs(mask, dtype), bias_of(kind)), "cpu") < 3.5 * QUERIES


@pytest.mark.parametrize("learned", ["text", "text and bias"])
@pytest.mark.parametrize("form", ["none", "left padding", "packed", "sliding window"])
@pytest.mark.parametrize("kind", ["linear", "relative"])
def test_training_allocates_a_few_times_the_queries(kind, form, learned):
    mask = None if form == "none" else masks(LENGTH)[form][-1:, None]
    run = attended(inputs(mask, learns=True), bias_of(kind, learned == "text and bias"), learns=True)
    assert peak_bytes(run, "cpu") < 12 * QUERIES, "blocks of scores of 64 queries are 2 times the queries each"


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("form", ["none", "left padding", "packed", "sliding window"])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_summed_steps_allocate_a_few_times_the_queries(form, learns, factors, dtype):
    mask = None if form == "none" else masks(LENGTH)[form][-1:, None]
    steps = torch.rand(1, HEADS, LENGTH).requires_grad_(learns)
    given = torch.rand(1, HEADS, LENGTH).requires_grad_(learns) if factors else None
    run = attended(inputs(mask, dtype, learns), SummedBias(steps, 0, LENGTH, given), learns)
    # Wider queries, keys and values, keys and values repeated for each query head, the context, and their gradients;
    # 4 times the queries are the mask in float32, which torch makes.
    assert peak_bytes(run, "cpu") < (20 if learns else 12) * QUERIES


def test_summed_steps_of_an_encoder_allocate_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(sdpa, "BLOCK_BYTES", QUERIES)  # the rows of 32 queries
    bias = SummedBias(torch.rand(1, HEADS, LENGTH), 0, LENGTH, torch.rand(1, HEADS, LENGTH))
    run = attended(replace(inputs(), causal=False), bias)
    assert peak_bytes(run, "cpu") < 12 * QUERIES, "heads × length × length are 32 times the queries"


@pytest.mark.parametrize("scheme", ["shaw", "transformer_xl"])
def test_biases_that_read_the_query_allocate_a_block_at_a_time(scheme):
    facts = model_facts(hidden_size=HEADS * DIM, num_heads=HEADS, num_key_value_heads=KEY_HEADS, head_dim=DIM)
    made, layer = build(parse_scheme(scheme), facts)
    steps = torch.arange(LENGTH)[None]
    positions = Positions(steps, steps, 0, True)
    call = inputs()
    with torch.no_grad():
        prepared = made.prepare(positions)
        bias = layer_bias(layer, call.q, positions, prepared, call.scaling, call.k)
        mix = (lambda weights, start: layer.mix(weights, start, positions, None)) if layer.mixes_values else None
        peak = peak_bytes(lambda: attend(call, bias, mix, "sdpa"), "cpu")
    assert peak < 6 * QUERIES, "64 queries' products with every distance are 2 times the queries"


@pytest.mark.parametrize("scheme", ["shaw", "transformer_xl"])
def test_biases_that_read_the_query_hold_no_copy_of_the_queries_in_float32(scheme):
    facts = model_facts(hidden_size=HEADS * DIM, num_heads=HEADS, num_key_value_heads=KEY_HEADS, head_dim=DIM)
    made, layer = build(parse_scheme(scheme), facts)
    steps = torch.arange(LENGTH)[None]
    positions = Positions(steps, steps, 0, True)
    query = torch.randn(1, HEADS, LENGTH, DIM)
    with torch.no_grad():
        prepared = made.prepare(positions)
        table = 0 if prepared is None else layer.project(prepared).untyped_storage().nbytes()
        allocated = peak_bytes(lambda: layer_bias(layer, query, positions, prepared), "cpu")
    assert allocated < table + QUERIES / 2


@pytest.mark.parametrize(
    ("length", "dtype", "blocks"),
    [(2048, torch.float32, 8), (6144, torch.float32, 8), (16384, torch.float32, 22), (16384, torch.bfloat16, 16)],
)
def test_long_texts_take_long_blocks(length, dtype, blocks, monkeypatch):
    sizes = []

    def count(q, k, v, rows, scaling):
        sizes.append(q.shape[2])
        return torch.zeros_like(q), q.new_zeros(q.shape[:3], dtype=torch.float32)

    monkeypatch.setattr(strided, "fused", count)
    q, k, v = (torch.zeros(1, 1, length, 8, dtype=dtype) for _ in range(3))
    bias = RelativeBias(torch.zeros(1, 2 * length - 1), length, length)
    attend(AttentionInputs(q, k, v, None, True, 1.0), bias, None, "sdpa")
    assert len(sizes) == blocks
    assert sum(sizes) == length


def test_one_query_copies_no_keys():
    q, k, v = (torch.randn(1, heads, n, DIM) for heads, n in ((HEADS, 1), (KEY_HEADS, 4096), (KEY_HEADS, 4096)))
    bias = RelativeBias(torch.randn(HEADS, 4096), 1, 4096)
    call = AttentionInputs(q, k, v, None, True, 1.0)
    attend(call, bias, None, "sdpa")  # the row is made, once for all layers
    assert peak_bytes(lambda: attend(call, bias, None, "sdpa"), "cpu") < k.untyped_storage().nbytes() / 8


class Calls:
    """Counts the calls of functions."""

    def __init__(self, monkeypatch, *names):
        self.counts = dict.fromkeys(names, 0)
        for name in names:
            self._count(monkeypatch, name)

    def _count(self, monkeypatch, name):
        path, _, attribute = name.rpartition(".")
        module, _, last = path.rpartition(".")
        owner = importlib.import_module(path) if last.islower() else getattr(importlib.import_module(module), last)
        original = getattr(owner, attribute)

        def counted(*args, **kwargs):
            self.counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, counted)


ONCE = {
    "alibi": ("hf_posswap.schemes.alibi.alibi_bias", "hf_posswap.common.biases.LinearBias._relative"),
    "t5": ("hf_posswap.schemes.t5.t5_bucket", "hf_posswap.schemes.t5.bucket_bias"),
    "relative_bias": ("hf_posswap.schemes.relative_bias.clipped",),
    "transformer_xl": ("hf_posswap.schemes.transformer_xl.sinusoids",),
    "rope:yarn": ("hf_posswap.schemes.rope_frequencies.yarn_frequencies",),
}


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("scheme", ONCE)
def test_what_depends_on_positions_is_computed_once_for_all_layers(scheme, padded, monkeypatch):
    model = hf_posswap.swap(small_model("llama", True), scheme)
    calls = Calls(monkeypatch, *ONCE[scheme], "hf_posswap.attention.visibility.mask_segments")
    tokens = random_tokens(2, 20)
    mask = torch.ones_like(tokens)
    if padded:
        mask[0, :6] = 0
    with torch.no_grad():
        model(tokens, attention_mask=mask)
    assert calls.counts.pop("hf_posswap.attention.visibility.mask_segments") <= padded
    assert calls.counts == dict.fromkeys(calls.counts, 1)


@pytest.mark.parametrize("scheme", ["alibi", "t5"])
def test_a_vector_is_hidden_beyond_the_text_once_for_all_layers(scheme, monkeypatch):
    model = hf_posswap.swap(small_model("llama", True), scheme)
    made = []
    original = torch.Tensor.masked_fill
    monkeypatch.setattr(torch.Tensor, "masked_fill", lambda *a: (made.append(a[0].shape), original(*a))[1])
    with torch.no_grad():
        model(random_tokens(1, 20))
    assert [shape for shape in made if shape == (4, 39)] == [(4, 39)]


def test_the_row_of_a_decoded_token_is_made_once_for_all_layers(monkeypatch):
    model = hf_posswap.swap(small_model("llama", True), "t5")
    tokens = random_tokens(1, 12)
    with torch.no_grad():
        outputs = model(tokens[:, :11], use_cache=True)
        name = cache_keyword(outputs)
        calls = Calls(monkeypatch, "hf_posswap.attention.sdpa._single_row")
        model(tokens[:, 11:], **{name: outputs[name]})
    assert list(calls.counts.values()) == [1]


def test_flex_attention_reads_a_mask_as_a_block_mask(monkeypatch):
    monkeypatch.setattr(flex, "_with_mask", None)  # the dense mask is not read in the kernel
    biased = make_biased_call("relative", "boolean mask", head_dim=16)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        biased.assert_close(attend(biased.inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)


def test_a_compiled_training_step_keeps_no_block_of_a_learned_bias():
    torch._dynamo.reset()
    call, bias = inputs(learns=True), bias_of("relative", learns=True)
    leaves = (call.q, call.k, call.v, bias.values)

    def context(q, k, v, values):
        again = AttentionInputs(q, k, v, None, True, call.scaling)
        return attend(again, RelativeBias(values, LENGTH, LENGTH), None, "sdpa")[0]

    compiled = torch.compile(context, fullgraph=True, backend="aot_eager")
    torch.autograd.grad(compiled(*leaves).sum(), leaves)
    assert peak_bytes(lambda: torch.autograd.grad(compiled(*leaves).sum(), leaves), "cpu") < 12 * QUERIES

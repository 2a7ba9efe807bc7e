"""rope against its oracle, Llama, GPT-J, GPT-NeoX and transformers' own scalings."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_neox import modeling_gpt_neox as gpt_neox
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama

from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes import check_supported
from hf_posswap.schemes.rope_config import RopeConfig
from hf_posswap.schemes.rope_frequencies import attention_factor
from hf_posswap.schemes.rope_layers import rotate
from tests.oracles.rope import attention_factor as oracle_attention_factor
from tests.oracles.rope import frequencies, turn
from tests.reference import (
    CAUSAL_CALLS,
    ENCODER_CALLS,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)

SHORT, LONG = [1.0, 1.5, 2.0, 3.0], [2.0, 4.0, 8.0, 16.0]
YARN = {"beta_fast": 2.0, "beta_slow": 0.2, "truncate": True}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}

# Scaling → our options, and what the oracle calls them. Train length 6: texts of 11 tokens reach beyond it.
SCALINGS = {
    "none": ({}, {}),
    "linear": ({"factor": 3.0}, {"factor": 3.0}),
    "ntk": ({"factor": 3.0}, {"factor": 3.0}),
    "dynamic": ({"factor": 3.0}, {"factor": 3.0, "train_length": 6}),
    "yarn": ({"factor": 3.0, **YARN}, {"factor": 3.0, "train_length": 6, **YARN}),
    "longrope": (
        {"factor": 2.0, "short_factor": SHORT, "long_factor": LONG},
        {"factor": 2.0, "train_length": 6, "short_factor": SHORT, "long_factor": LONG},
    ),
    "llama3": ({"factor": 3.0, **LLAMA3}, {"factor": 3.0, "train_length": 6, **LLAMA3}),
    "proportional": ({"factor": 2.0, "partial_rotary_factor": 0.5}, {"factor": 2.0, "share": 0.5}),
}


@pytest.mark.parametrize("kind", CAUSAL_CALLS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_equals_the_oracle(scaling, kind):
    ours, theirs = SCALINGS[scaling]
    facts = model_facts(train_length=6)
    call = make_call(kind, facts)
    actual = run_scheme(*build(RopeConfig(scaling=scaling, base=100.0, **ours), facts), call)
    expected = run_oracle("rope", call, rotated=8, interleaved=False, scaling_type=scaling, base=100.0, **theirs)
    assert_close_where_real(call, actual, expected)


@pytest.mark.parametrize("kind", ["whole", "chunk", "padded", "skipping"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_pairs_that_never_turned_once_stand_still(scaling, kind):
    ours, theirs = SCALINGS[scaling]
    # θ = 1 is 1.11 turns over 7 tokens, and every other pair of the base 100 is less than one.
    facts = model_facts(train_length=7)
    call = make_call(kind, facts)
    theirs = theirs | ({"train_length": 7} if "train_length" in theirs else {})
    config = RopeConfig(scaling=scaling, base=100.0, frequencies="fope", **ours)
    scheme, layer = build(config, facts)
    expected = run_oracle(
        "rope", call, rotated=8, interleaved=False, scaling_type=scaling, base=100.0, cycles_within=7, **theirs
    )
    assert_close_where_real(call, run_scheme(scheme, layer, call), expected)


def test_fope_keeps_the_fast_pairs_of_a_real_model():
    facts = model_facts(head_dim=64, train_length=2048)
    scheme, _ = build(RopeConfig(scaling="none", frequencies="fope"), facts)
    plain, _ = build(RopeConfig(scaling="none"), facts)
    theta, whole = (s.frequencies(torch.tensor([[10]])) for s in (scheme, plain))
    turns = whole * 2048 / (2 * torch.pi)
    assert torch.equal(theta != 0, turns >= 1)
    assert torch.equal(theta[theta != 0], whole[turns >= 1])
    assert int((theta != 0).sum()) == 21  # 10000^(−2·20/64)·2048/2π = 1.03, and 0.77 for the next pair
    with pytest.raises(UnsupportedError, match=r"frequencies='fope'.*frequencies='all' could be exported"):
        scheme.as_stock()


@pytest.mark.parametrize("kind", ENCODER_CALLS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_partial_and_interleaved_equal_the_oracle(share, interleaved, kind):
    facts = model_facts(causal=False)
    call = make_call(kind, facts)
    config = RopeConfig(scaling="none", partial_rotary_factor=share, interleaved=interleaved)
    expected = run_oracle(
        "rope", call, rotated=int(8 * share), interleaved=interleaved, scaling_type="none", base=10000.0
    )
    assert_close_where_real(call, run_scheme(*build(config, facts), call, "sdpa"), expected)


def rotated_by(config, facts, q, k, at):
    scheme, layer = build(config, facts)
    positions = Positions(at, at, offset=0, causal=True)
    return layer.transform(q, k, positions, scheme.prepare(positions))


@pytest.mark.parametrize("interleaved", [False, True])
def test_halves_equal_llama_and_pairs_equal_gptj(interleaved):
    facts = model_facts(num_key_value_heads=4, head_dim=16)
    q, k, at = torch.randn(2, 4, 30, 16), torch.randn(2, 4, 30, 16), torch.arange(30)[None]
    ours = rotated_by(RopeConfig(scaling="none", interleaved=interleaved), facts, q, k, at)
    if interleaved:
        sin, cos = gptj.create_sinusoidal_positions(30, 16)[None].chunk(2, dim=-1)
        # GPT-J keeps heads after positions.
        theirs = [gptj.apply_rotary_pos_emb(x.transpose(1, 2), sin, cos).transpose(1, 2) for x in (q, k)]
    else:
        config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope_parameters("default"))
        theirs = llama.apply_rotary_pos_emb(q, k, *llama.LlamaRotaryEmbedding(config)(q, at))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_partial_rotation_equals_gpt_neox():
    parameters = rope_parameters("default", partial_rotary_factor=0.25)
    config = GPTNeoXConfig(hidden_size=64, num_attention_heads=4, rope_parameters=parameters)
    q, k, at = torch.randn(2, 4, 30, 16), torch.randn(2, 4, 30, 16), torch.arange(30)[None]
    theirs = gpt_neox.apply_rotary_pos_emb(q, k, *gpt_neox.GPTNeoXRotaryEmbedding(config)(q, at))
    facts = model_facts(num_key_value_heads=4, head_dim=16)
    ours = rotated_by(RopeConfig(scaling="none", partial_rotary_factor=0.25), facts, q, k, at)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def rope_parameters(rope_type: str, **options) -> dict:
    return {"rope_type": rope_type, "rope_theta": 10000.0, **options}


HEAD_DIM, TRAIN_LENGTH = 64, 2048
FACTORS = {"short_factor": [1.0 + n / 16 for n in range(32)], "long_factor": [1.0 + n for n in range(32)]}
SHARED_SCALINGS = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0},
    "yarn untruncated": {"factor": 7.5, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
    "longrope": {"factor": 4.0, **FACTORS},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "proportional": {"factor": 2.0, "partial_rotary_factor": 0.25},
}


@pytest.mark.parametrize("length", [1000, 2048, 5000])
@pytest.mark.parametrize("case", SHARED_SCALINGS)
def test_frequencies_equal_transformers(case, length):
    scaling, options = case.split()[0], SHARED_SCALINGS[case]
    theirs_config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=TRAIN_LENGTH,
        rope_parameters=rope_parameters(scaling, original_max_position_embeddings=TRAIN_LENGTH, **options),
    )
    theirs, theirs_factor = ROPE_INIT_FUNCTIONS[scaling](theirs_config, torch.device("cpu"), seq_len=length)
    facts = model_facts(head_dim=HEAD_DIM, train_length=TRAIN_LENGTH)
    scheme, _ = build(RopeConfig(scaling=scaling, **options), facts)
    ours = scheme.frequencies(torch.tensor([[length]])).flatten()
    # The same operations in the same order; only dynamic's base is a float32 tensor here, theirs a Python number.
    torch.testing.assert_close(ours, theirs, atol=0, rtol=2e-6 if scaling == "dynamic" else 0)
    assert attention_factor(scheme.config) == pytest.approx(theirs_factor, rel=1e-12)


@pytest.mark.parametrize("case", [*SHARED_SCALINGS, "ntk"])
def test_frequencies_equal_the_formula(case):
    scaling, options = case.split()[0], dict(SHARED_SCALINGS.get(case, {"factor": 4.0}))
    facts = model_facts(head_dim=HEAD_DIM, train_length=TRAIN_LENGTH)
    scheme, _ = build(RopeConfig(scaling=scaling, **options), facts)
    ours = scheme.frequencies(torch.tensor([[5000]])).flatten().double()
    options |= {"share": options.pop("partial_rotary_factor", 1.0)} if scaling == "proportional" else {}
    options |= {"truncate": options.get("truncate", True)} if scaling == "yarn" else {}
    expected = frequencies(scaling, HEAD_DIM, 10000.0, train_length=TRAIN_LENGTH, length=5000, **options)
    # float32 powers of the base are off by a few units in the last place.
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), atol=0, rtol=2e-6)
    expected_factor = oracle_attention_factor(scaling, options.get("factor"), TRAIN_LENGTH)
    assert attention_factor(scheme.config) == pytest.approx(expected_factor)


def test_ntk_leaves_the_fastest_pair_and_divides_the_slowest_by_the_factor():
    facts = model_facts(head_dim=HEAD_DIM)
    plain, ntk = (
        build(RopeConfig(scaling=scaling, **options), facts)[0].frequencies(torch.tensor([[8]]))
        for scaling, options in (("none", {}), ("ntk", {"factor": 4.0}))
    )
    assert ntk[0] == plain[0]
    assert 4 * ntk[-1].item() == pytest.approx(plain[-1].item(), rel=1e-5)


@pytest.mark.parametrize(("scaling", "options"), [("dynamic", {"factor": 4.0}), ("longrope", FACTORS)])
def test_each_row_of_a_batch_has_the_frequencies_of_its_own_length(scaling, options):
    facts = model_facts(head_dim=HEAD_DIM, train_length=16)
    scheme, _ = build(RopeConfig(scaling=scaling, **options), facts)
    at = torch.stack([torch.arange(40), (torch.arange(40) - 28).clamp(min=0)])
    positions = Positions(at, at, offset=0, causal=True)
    theta = scheme.frequencies(positions.row_lengths())
    alone = [scheme.frequencies(torch.tensor([[length]]))[0] for length in (40, 12)]
    assert torch.equal(theta, torch.stack(alone))
    assert not torch.equal(theta[0], theta[1])
    assert torch.equal(theta[1], scheme.frequencies(torch.tensor([[2]]))[0]), "a short text is not stretched"


@pytest.mark.parametrize(("scaling", "raw"), [("none", False), ("yarn", False), ("dynamic", True), ("longrope", True)])
def test_keys_are_cached_unrotated_where_their_rotation_changes(scaling, raw):
    facts = model_facts(train_length=6)
    ours, _ = SCALINGS[scaling]
    scheme, layer = build(RopeConfig(scaling=scaling, **ours), facts)
    call = make_call("whole", facts)
    positions = call.positions(0, 11)
    prepared = scheme.prepare(positions)
    q, k = layer.transform(call.q, call.k, positions, prepared)
    assert scheme.keeps_raw_keys() is raw
    assert torch.equal(k, call.k) is raw
    q_after, k_after = layer.transform_cached(q, k, positions, prepared)
    assert torch.equal(k_after, k) is not raw
    assert torch.equal(q_after, q) is not raw


def test_attention_factor_multiplies_q_and_k():
    facts = model_facts(train_length=6)
    q, k, at = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.arange(5)[None]
    plain = RopeConfig(scaling="yarn", factor=3.0, attention_factor=1.0, beta_fast=2.0, beta_slow=0.2)
    scaled = RopeConfig(scaling="yarn", factor=3.0, attention_factor=1.5, beta_fast=2.0, beta_slow=0.2)
    for a, b in zip(rotated_by(plain, facts, q, k, at), rotated_by(scaled, facts, q, k, at), strict=True):
        torch.testing.assert_close(a * 1.5, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_turns_far_positions_in_float32(dtype):
    scheme, _ = build(RopeConfig(scaling="none"), model_facts())
    scheme.to(dtype)
    x, at = torch.randn(1, 1, 2, 8).to(dtype), torch.tensor([[30001, 30002]])
    positions = Positions(at, at, offset=0, causal=True)
    rotation = scheme.prepare(positions).query
    assert rotation.cos.dtype == torch.float32
    turned = rotate(x, rotation, interleaved=False)
    thetas = frequencies("none", 8, 10000.0)
    expected = [turn(x[0, 0, n].double().numpy(), 30001 + n, thetas, False, 1.0) for n in range(2)]
    # One rounding to the dtype; float32 angles of 30000 add 2e-3 at most.
    error = (turned[0, 0].double() - torch.from_numpy(np.stack(expected))).abs().max()
    assert error < torch.finfo(dtype).eps * x.abs().max() + 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_single_token_turns_in_fewer_operations_to_the_same_bits(dtype, rows):
    scheme, layer = build(RopeConfig(), model_facts())
    at = torch.tensor([[41], [7]])[:rows]
    prepared = scheme.prepare(Positions(at, torch.arange(42)[None], offset=41, causal=True))
    x = torch.randn(2, 4, 1, scheme.facts.head_dim).to(dtype)
    assert prepared.step is not None
    expected = rotate(x, prepared.query, interleaved=False)
    assert torch.equal(layer.transform_query(x, None, prepared), expected)
    assert torch.equal(layer.transform_key(x, None, prepared), expected)


@pytest.mark.parametrize("options", [{"interleaved": True}, {"partial_rotary_factor": 0.5}])
def test_other_layouts_turn_a_single_token_as_they_turn_a_text(options):
    scheme, _ = build(RopeConfig(**options), model_facts())
    at = torch.tensor([[41]])
    assert scheme.prepare(Positions(at, torch.arange(42)[None], offset=41, causal=True)).step is None


def test_scores_depend_on_the_distance_only():
    facts = model_facts()
    q, k = torch.randn(1, 4, 1, 8).expand(-1, -1, 6, -1), torch.randn(1, 2, 1, 8).expand(-1, -1, 6, -1)
    q, k = rotated_by(RopeConfig(scaling="none"), facts, q, k, torch.arange(6)[None] + 1000)
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2)
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1], atol=2e-3, rtol=0)  # float32 angles of 1000


NATIVE = {"scaling": "yarn", "base": 500.0, "factor": 2.0, "original_length": 12}


def test_native_takes_the_models_own_rope():
    facts = model_facts(native_rope=NATIVE)
    config = RopeConfig(layers=[1], keep_native=True).resolve(facts)
    assert config == RopeConfig(layers=[1], keep_native=True, partial_rotary_factor=1.0, **NATIVE)
    assert RopeConfig(base=77.0).resolve(facts).base == 77.0
    plain = RopeConfig(scaling="none", base=10000.0, partial_rotary_factor=1.0)
    assert RopeConfig().resolve(model_facts()) == plain


def test_open_options_come_from_the_model():
    config = RopeConfig(scaling="yarn").resolve(model_facts(native_rope=NATIVE, train_length=99))
    assert (config.base, config.factor, config.original_length) == (500.0, 4.0, 12), "not its stretched length"
    config = RopeConfig(scaling="yarn").resolve(model_facts(train_length=99))
    assert (config.base, config.factor, config.original_length) == (10000.0, 4.0, 99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 2.0}, "'factor' has no effect with scaling='native'"),
        ({"scaling": "linear", "beta_fast": 2.0}, "'beta_fast' has no effect with scaling='linear'.*read by.*yarn"),
        ({"scaling": "linear", "factor": 1.0}, "needs factor > 1"),
        ({"scaling": "yarn", "beta_fast": 1.0, "beta_slow": 2.0}, "beta_fast > beta_slow"),
        ({"scaling": "llama3", "low_freq_factor": 9.0}, "high_freq_factor > low_freq_factor"),
        ({"scaling": "longrope", "short_factor": [1.0]}, "needs short_factor and long_factor"),
        ({"scaling": "yarnn"}, "Did you mean 'yarn'"),
    ],
)
def test_options_that_do_not_work_are_refused(options, message):
    with pytest.raises(SchemeConfigError, match=message):
        RopeConfig(**options)


@pytest.mark.parametrize(
    ("options", "head_dim", "message"),
    [
        ({}, 7, "dimensions turn in pairs, but 7"),
        ({"partial_rotary_factor": 0.1}, 8, "even and at least 2"),
        ({"scaling": "ntk", "partial_rotary_factor": 0.25}, 8, "more than 2 rotated dimensions"),
        ({"scaling": "longrope", "short_factor": SHORT, "long_factor": SHORT}, 16, "one for each of the 8 pairs"),
    ],
)
def test_models_that_cannot_turn_are_refused(options, head_dim, message):
    facts = model_facts(head_dim=head_dim)
    with pytest.raises(UnsupportedError, match=message):
        check_supported(RopeConfig(**options).resolve(facts), facts)

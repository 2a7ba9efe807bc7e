"""alibi against its oracle, BLOOM and MPT, and the traps: sign, slopes, half precision."""

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from hf_posswap.common.biases import LinearBias, RelativeBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes import check_supported
from hf_posswap.schemes.alibi import ENCODER_FORMS, AlibiConfig, alibi_slopes
from tests.oracles.alibi import slopes as oracle_slopes
from tests.reference import (
    CAUSAL_CALLS,
    ENCODER_CALLS,
    as_array,
    assert_close_where_real,
    build,
    layer_bias,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", CAUSAL_CALLS)
def test_causal_form_equals_the_oracle(kind, backend):
    facts = model_facts()
    call = make_call(kind, facts)
    actual = run_scheme(*build(AlibiConfig(), facts), call, backend)
    assert_close_where_real(call, actual, run_oracle("alibi", call, form="causal"))


@pytest.mark.parametrize("form", ENCODER_FORMS)
@pytest.mark.parametrize("kind", ENCODER_CALLS)
def test_encoder_forms_equal_the_oracle(kind, form):
    facts = model_facts(causal=False)
    call = make_call(kind, facts)
    actual = run_scheme(*build(AlibiConfig(form=form), facts), call, "sdpa")
    assert_close_where_real(call, actual, run_oracle("alibi", call, form=form))


@pytest.mark.parametrize(("form", "option", "value"), [("offset", "offset", 1.5), ("two-slope", "right_ratio", 0.25)])
def test_the_forms_own_options_equal_the_oracle(form, option, value):
    facts = model_facts(causal=False)
    call = make_call("whole", facts)
    actual = run_scheme(*build(AlibiConfig(form=form, **{option: value}), facts), call)
    assert_close_where_real(call, actual, run_oracle("alibi", call, form=form, **{option: value}))


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("kind", ["whole", "padded", "skipping"])
def test_learned_slopes_equal_the_oracle(kind, per_layer):
    facts = model_facts()
    call = make_call(kind, facts)
    scheme, layer = build(AlibiConfig(trainable=True, per_layer=per_layer), facts)
    log_slopes = (layer if per_layer else scheme).log_slopes
    expected = run_oracle("alibi", call, form="causal", m=as_array(log_slopes.exp()).tolist())
    assert_close_where_real(call, run_scheme(scheme, layer, call), expected)


@pytest.mark.parametrize("heads", range(1, 65))
def test_slopes_and_bias_equal_bloom_and_mpt_up_to_a_row_shift(heads):
    length = 24
    torch.testing.assert_close(alibi_slopes(heads).double(), torch.tensor(oracle_slopes(heads), dtype=torch.float64))
    positions = Positions(*[torch.arange(length)[None]] * 2, offset=0, causal=True)
    bias = LinearBias(alibi_slopes(heads), positions.distances, length, length)
    ours = bias.rows(0, length)[0]
    bloom = build_alibi_tensor(torch.ones(1, length), heads, torch.float32)
    for theirs in (bloom, build_mpt_alibi_tensor(heads, length)):
        shift = ours - theirs.reshape(heads, 1, length)
        # A row shift is the same for all keys; slopes are powers of 2 or of √2, so float32 rounds at 1e-6 of 24.
        torch.testing.assert_close(shift, shift[:, :, :1].expand_as(shift), atol=1e-5, rtol=0)


def test_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]


def test_heads_that_are_no_power_of_two_take_every_other_slope_of_the_next_power():
    expected = torch.cat([alibi_slopes(8), alibi_slopes(16)[0::2][:4]])
    assert torch.equal(alibi_slopes(12), expected)


@pytest.mark.parametrize(("causal", "form"), [(True, None), *((False, form) for form in ENCODER_FORMS)])
def test_the_bias_falls_with_distance(causal, form):
    facts = model_facts(causal=causal)
    scheme, layer = build(AlibiConfig(form=form), facts)
    positions = Positions(*[torch.arange(9)[None]] * 2, offset=0, causal=causal)
    last_row = layer_bias(layer, torch.zeros(1), positions, scheme.prepare(positions)).rows(8, 9)[0, :, 0]
    seen = last_row[last_row[:, 0].isfinite()]
    assert len(seen) >= facts.num_heads // 2
    assert (seen.diff(dim=-1) > 0).all(), "nearer keys, which come later, must be preferred"


def test_half_precision_keeps_every_distance_apart():
    length = 5000
    scheme, layer = build(AlibiConfig(), model_facts())
    scheme.to(torch.float16)
    positions = Positions(*[torch.arange(length)[None]] * 2, offset=0, causal=True)
    bias = layer_bias(layer, torch.zeros(1), positions, scheme.prepare(positions))
    row = bias.rows(length - 1, length)[0, :, 0].double()
    slopes = torch.tensor(oracle_slopes(4), dtype=torch.float64)
    # float16 would be exact to 2048 only; slopes of four heads are powers of 2, so float32 is exact.
    assert torch.equal(row, -slopes[:, None] * (length - 1 - torch.arange(length, dtype=torch.float64)))


def test_bias_kinds_are_the_cheap_ones():
    facts = model_facts()
    positions = Positions(*[torch.arange(9)[None]] * 2, offset=0, causal=True)
    assert isinstance(build(AlibiConfig(), facts)[0].prepare(positions), LinearBias)
    encoder = Positions(*[torch.arange(9)[None]] * 2, offset=0, causal=False)
    scheme, _ = build(AlibiConfig(form="two-slope"), model_facts(causal=False))
    assert isinstance(scheme.prepare(encoder), RelativeBias)


def test_slopes_learn():
    facts = model_facts()
    scheme, layer = build(AlibiConfig(trainable=True), facts)
    run_scheme(scheme, layer, make_call("whole", facts), "sdpa").square().sum().backward()
    assert (scheme.log_slopes.grad != 0).all()


@pytest.mark.parametrize(
    "options", [{"offset": 1.0}, {"form": "symmetric", "right_ratio": 0.5}, {"per_layer": True}, {"form": "causl"}]
)
def test_options_without_effect_are_refused(options):
    with pytest.raises(SchemeConfigError, match=rf"alibi option '{list(options)[-1]}'"):
        AlibiConfig(**options)


@pytest.mark.parametrize(
    ("form", "facts", "reason"),
    [
        ("symmetric", model_facts(), "is for encoders"),
        ("causal", model_facts(causal=False), "is for causal models"),
        ("one-sided", model_facts(causal=False, num_heads=3, num_key_value_heads=3), "halves the heads"),
    ],
)
def test_forms_that_do_not_fit_are_refused_with_the_reason(form, facts, reason):
    with pytest.raises(UnsupportedError, match=reason):
        check_supported(AlibiConfig(form=form), facts)


@pytest.mark.parametrize(("causal", "form"), [(True, "causal"), *((False, form) for form in ENCODER_FORMS)])
@pytest.mark.parametrize("train_length", [6, 100])
@pytest.mark.parametrize("kind", ENCODER_CALLS)
def test_interpolated_slopes_equal_the_oracle(kind, train_length, causal, form):
    facts = model_facts(causal=causal, train_length=train_length)
    call = make_call(kind, facts)  # "padded" has two texts of different length, "skipping" positions far past 11
    actual = run_scheme(*build(AlibiConfig(form=form, interpolate=True), facts), call, "sdpa")
    assert_close_where_real(call, actual, run_oracle("alibi", call, form=form, train_length=train_length))


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("kind", CAUSAL_CALLS)
def test_learned_slopes_are_interpolated_too(kind, per_layer):
    facts = model_facts(train_length=6)
    call = make_call(kind, facts)
    scheme, layer = build(AlibiConfig(trainable=True, per_layer=per_layer, interpolate=True), facts)
    m = as_array((layer if per_layer else scheme).log_slopes.exp()).tolist()
    actual = run_scheme(scheme, layer, call)
    assert_close_where_real(call, actual, run_oracle("alibi", call, form="causal", m=m, train_length=6))


def test_interpolation_keeps_the_cheap_kinds_unless_texts_differ_in_length():
    scheme, _ = build(AlibiConfig(interpolate=True), model_facts(train_length=6))
    at = torch.arange(12).repeat(2, 1)
    bias = scheme.prepare(Positions(at, at, offset=0, causal=True))
    assert isinstance(bias, LinearBias)
    torch.testing.assert_close(bias.slopes, alibi_slopes(4) / 2)
    at[0] = (at[0] - 3).clamp(min=0)
    rows = scheme.prepare(Positions(at, at, offset=0, causal=True)).rows(11, 12)
    torch.testing.assert_close(rows[0], rows[1] * 12 / 9)
    assert scheme.length_dependent()

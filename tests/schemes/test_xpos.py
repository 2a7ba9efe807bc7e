"""xpos against its oracle, RoPE as its limit, far positions in every dtype, and its calibration."""

import pytest
import torch

import hf_posswap
from hf_posswap.calibration import calibrate, calibration_refusal
from hf_posswap.common.positions import Positions
from hf_posswap.errors import PositionError, SchemeConfigError, UnsupportedError
from hf_posswap.schemes import check_supported
from hf_posswap.schemes.rope import RopeConfig
from hf_posswap.schemes.xpos import Xpos, XposConfig
from tests.matrix.cells import random_tokens, small_model
from tests.reference import (
    CAUSAL_CALLS,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("scale_base", [512, 8])
@pytest.mark.parametrize("kind", CAUSAL_CALLS)
def test_equals_the_oracle(kind, scale_base, interleaved):
    facts = model_facts()
    call = make_call(kind, facts)
    scheme, layer = build(XposConfig(scale_base=scale_base, interleaved=interleaved, base=100), facts)
    expected = run_oracle("xpos", call, base=100.0, scale_base=scale_base, interleaved=interleaved)
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa"), expected)


def test_a_slow_decay_is_rope():
    facts = model_facts()
    call = make_call("whole", facts)
    actual = run_scheme(*build(XposConfig(scale_base=10**9), facts), call)
    torch.testing.assert_close(actual, run_scheme(*build(RopeConfig(), facts), call), atol=1e-5, rtol=1e-5)


def scores_at(scheme: Xpos, start: int, dtype: torch.dtype) -> torch.Tensor:
    """Scores (1, 1, 600) of a query with the keys before it, all of ones; they depend on the distance alone."""
    layer = scheme.make_layer(0)
    at = torch.arange(start, start + 600)[None]
    positions = Positions(at, at, offset=0, causal=True)
    ones = torch.ones(1, 1, 600, scheme.facts.head_dim, dtype=dtype)
    q, k = layer.transform(ones, ones, positions, scheme.prepare(positions))
    return q[:, :, -1:].double() @ k.double().transpose(-1, -2)


@pytest.mark.parametrize(
    ("dtype", "last", "tolerance"),
    # 33000·θ in float32 has an error of 0.002 radians; half precision rounds each of the 8 products twice more.
    [(torch.float32, 32_000, 0.05), (torch.bfloat16, 32_000, 0.2), (torch.float16, 2_400, 0.05)],
)
def test_far_positions_give_the_scores_of_near_ones(dtype, last, tolerance):
    scheme, _ = build(XposConfig(), model_facts())
    near, far = scores_at(scheme, 0, torch.float32), scores_at(scheme, last, dtype)
    assert far.isfinite().all()
    torch.testing.assert_close(far, near, atol=tolerance, rtol=0)


def test_the_longest_position_is_where_factors_leave_the_dtype():
    scheme, layer = build(XposConfig(), model_facts())
    assert scheme.longest_position() == 32_507
    limit = scheme.longest_position() - 600
    assert scores_at(scheme, limit, torch.bfloat16).isfinite().all()
    half = scheme.reach(600.0)
    assert half == 3_126
    assert scores_at(scheme, half - 600, torch.float16).isfinite().all()
    with pytest.raises(PositionError, match="reaches position 3126, but .*float16.*bfloat16 or float32"):
        scores_at(scheme, half - 599, torch.float16)
    one_layer_checks = [scheme.make_layer(index).limit is not None for index in range(3)]
    assert one_layer_checks == [True, False, False]
    assert layer.limit == half


def test_the_layer_that_checks_is_the_first_that_acts():
    scheme, _ = build(XposConfig(layers=(1,)), model_facts())
    assert scheme.make_layer(1).limit is not None


def test_scores_fall_with_the_distance_and_slow_pairs_last_longest():
    scheme, _ = build(XposConfig(scale_base=50), model_facts())
    scores = scores_at(scheme, 0, torch.float32)[0, 0, 0].flip(0)
    assert scores[300:].abs().max() < 0.4 * scores[:50].abs().max()
    order = scheme.steady_dimensions().tolist()
    assert order == [3, 7, 2, 6, 1, 5, 0, 4]


def test_encoders_and_odd_heads_are_refused():
    with pytest.raises(UnsupportedError, match="grows without bound to the right"):
        check_supported(XposConfig(), model_facts(causal=False))
    with pytest.raises(UnsupportedError, match="head dimension is 7"):
        check_supported(XposConfig(), model_facts(head_dim=7))


@pytest.mark.parametrize("options", [{"scale_base": 0}, {"base": 1}, {"interleaved": "yes"}])
def test_bad_options_are_refused(options):
    with pytest.raises(SchemeConfigError, match=rf"xpos option '{next(iter(options))}'"):
        XposConfig(**options)


def test_the_base_is_the_models_own():
    assert XposConfig().resolve(model_facts()).base == 10000.0
    native = {"scaling": "none", "base": 500000.0}
    assert XposConfig().resolve(model_facts(native_rope=native)).base == 500000.0


def test_calibration_chooses_coordinates_and_leaves_the_stock_model_as_it_is():
    stock = small_model("gpt2", True)
    model = hf_posswap.swap(small_model("gpt2", True), "xpos:scale_base=16")
    assert calibration_refusal(model) is None
    tokens = random_tokens(4, 24)
    report = calibrate(model, [tokens], measure=False)
    assert report.tokens == tokens.numel()
    hf_posswap.restore(model)
    with torch.no_grad():
        # Other coordinates and a shift of all keys: the same to rounding of float32, logits of order 1.
        torch.testing.assert_close(model(tokens).logits, stock(tokens).logits, atol=1e-3, rtol=1e-3)
    changed = [name for name, weight in stock.state_dict().items() if not torch.equal(weight, model.state_dict()[name])]
    assert changed
    assert all("c_attn" in name for name in changed)

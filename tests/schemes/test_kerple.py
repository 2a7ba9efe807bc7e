"""kerple against its oracle, and the traps: the gradient at distance 0, constraints, the seed; and its calibration."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hf_posswap.common.biases import RelativeBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.alibi import AlibiConfig
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.kerple import Kernel, KerpleConfig, inverse_softplus
from tests.reference import (
    CALLS,
    as_array,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)

FORMS = ("log", "power")


def p_and_a(kernel: Kernel) -> tuple[torch.Tensor, torch.Tensor]:
    """The positive parameters that the raw ones stand for, as the scheme's docstring defines them."""
    raw_p = kernel.raw_p.double()
    return (F.softplus(raw_p) if kernel.form == "log" else 2 * torch.sigmoid(raw_p)), F.softplus(kernel.raw_a.double())


def made(form: str = "log", **options: Any) -> Kernel:
    """The kernel as it starts."""
    facts = model_facts()
    config = KerpleConfig(form=form, **options)
    return type(build(config, facts)[0])(config, facts).kernel


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, form, per_layer):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    scheme, layer = build(KerpleConfig(form=form, per_layer=per_layer), facts)
    p, a = p_and_a((layer if per_layer else scheme).kernel)
    expected = run_oracle("kerple", call, form=form, p=as_array(p).tolist(), a=as_array(a).tolist())
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa"), expected)


@pytest.mark.parametrize("form", FORMS)
def test_starts_within_the_authors_ranges_by_the_seed(form):
    p, a = p_and_a(made(form))
    assert bool(((p >= 0.0099) & (p <= 2)).all())
    assert bool(((a >= 0.0099) & (a <= 1)).all())
    assert torch.equal(made(form).raw_p, made(form).raw_p)
    assert not torch.equal(made(form).raw_p, made(form, seed=1).raw_p)


def test_each_layer_starts_differently_and_the_global_generator_is_left_alone():
    scheme, _ = build(KerpleConfig(per_layer=True), model_facts())
    state = torch.get_rng_state()
    first, second = scheme.make_layer(0).kernel, scheme.make_layer(1).kernel
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.raw_a, second.raw_a)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extreme", [-60.0, 60.0])
def test_any_raw_parameters_give_a_penalty_that_does_not_fall_with_distance(form, extreme):
    kernel = made(form)
    with torch.no_grad():
        kernel.raw_p.fill_(extreme)
        kernel.raw_a.fill_(extreme)
        values = kernel.values(torch.arange(2000))
    assert values.isfinite().all()
    assert (values.diff(dim=-1) <= 0).all()


def test_the_power_form_with_an_exponent_of_one_is_alibi():
    facts = model_facts()
    alibi, _ = build(AlibiConfig(), facts)
    kernel = made("power")
    with torch.no_grad():
        kernel.raw_p.zero_()  # 2·σ(0) = 1
        kernel.raw_a.copy_(inverse_softplus(alibi.slopes()))
    distance = torch.arange(100)
    torch.testing.assert_close(kernel.values(distance), -alibi.slopes()[:, None] * distance, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["whole", "skipping"])
def test_every_parameter_learns_and_distance_zero_gives_no_nan(form, kind):
    facts = model_facts()
    scheme, layer = build(KerpleConfig(form=form), facts)
    run_scheme(scheme, layer, make_call(kind, facts), "sdpa").square().sum().backward()
    for parameter in scheme.parameters():
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).all()


def test_half_precision_keeps_float32_biases_and_the_cheap_kind():
    positions = Positions(*[torch.arange(4100)[None]] * 2, offset=0, causal=True)
    scheme, _ = build(KerpleConfig(), model_facts())
    scheme.to(torch.bfloat16)
    bias = scheme.prepare(positions)
    assert isinstance(bias, RelativeBias)
    assert bias.values.dtype == torch.float32
    far = bias.values[:, -2:]  # distances 4098 and 4099, the same number in bfloat16
    assert (far[:, 0] > far[:, 1]).any()


def curve_of(values: torch.Tensor, causal: bool, seed: int = 0) -> Curve:
    """A curve over 64 tokens with random weights, whose constant per head is unknown as it is in calibration."""
    distances = torch.arange(-63, 64)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(values.shape, generator=generator)
    weights = weights * (distances >= 0) if causal else weights
    return Curve(distances, values + torch.randn(values.shape[0], 1, generator=generator), weights)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_calibration_finds_the_parameters_that_made_the_curve(form, causal):
    truth = made(form, seed=5)
    distances = torch.arange(-63, 64)
    curve = curve_of(truth.values(distances).detach(), causal)
    scheme, _ = build(KerpleConfig(form=form), model_facts(causal=causal))
    assert scheme.fit([curve, curve_of(truth.values(distances).detach(), causal, seed=1)])
    torch.testing.assert_close(scheme.kernel.values(distances), truth.values(distances), atol=0.02, rtol=0.02)
    layer = build(KerpleConfig(form=form, per_layer=True), model_facts(causal=causal))[1]
    assert layer.fit(curve)
    torch.testing.assert_close(layer.kernel.values(distances), truth.values(distances), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_a_head_that_prefers_far_keys_gets_no_penalty(form):
    scheme, _ = build(KerpleConfig(form=form), model_facts())
    rising = 0.1 * torch.arange(-63, 64).abs().float().expand(4, -1)
    assert scheme.fit([curve_of(rising, causal=True)])
    assert scheme.kernel.values(torch.arange(64)).abs().max() < 0.05


def test_shared_and_own_parameters_are_fitted_where_they_are():
    curve = curve_of(torch.zeros(4, 127), causal=True)
    shared, without = build(KerpleConfig(), model_facts())
    own, layer = build(KerpleConfig(per_layer=True), model_facts())
    assert (shared.fit([curve]), without.fit(curve), own.fit([curve]), layer.fit(curve)) == (True, False, False, True)


@pytest.mark.parametrize("options", [{"form": "logarithm"}, {"seed": -1}, {"per_layer": "yes"}])
def test_bad_options_are_refused(options):
    with pytest.raises(SchemeConfigError, match=rf"kerple option '{next(iter(options))}'"):
        KerpleConfig(**options)

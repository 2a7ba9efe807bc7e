"""tisa against its oracle, its random start, and its calibration."""

from typing import Any

import pytest
import torch

from hf_posswap.common.biases import RelativeBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.tisa import Kernels, TisaConfig
from hf_posswap.schemes.tisa_fitting import NARROWEST
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

DISTANCES = torch.arange(-63, 64)


def made(**options: Any) -> Kernels:
    """The bell curves as they start."""
    facts = model_facts()
    config = TisaConfig(**options)
    return type(build(config, facts)[0])(config, facts).kernels


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, per_layer):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    scheme, layer = build(TisaConfig(per_layer=per_layer), facts)
    kernels = (layer if per_layer else scheme).kernels
    with torch.no_grad():
        kernels.offset.mul_(6)  # places up to several tokens away
    a, b, c = (as_array(x).tolist() for x in (kernels.amplitude, kernels.sharpness, kernels.offset))
    expected = run_oracle("tisa", call, a=a, b=b, c=c)
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa"), expected)


def test_the_place_of_a_bell_curve_is_the_key_minus_the_query():
    kernels = made(kernels=1)
    with torch.no_grad():
        kernels.amplitude.fill_(2.0)
        kernels.sharpness.fill_(0.5)
        kernels.offset.fill_(-3.0)  # the third key to the left
    values = kernels.values(DISTANCES)
    assert (DISTANCES[values.argmax(dim=1)] == 3).all()
    assert torch.allclose(values[:, 63 + 3], torch.tensor(2.0))
    assert torch.allclose(values[:, [-1, 0]], torch.tensor(0.0))


def test_starts_as_the_authors_code_by_the_seed():
    kernels = made(kernels=64)
    for parameter, mean, std in (
        (kernels.amplitude, 0.1, 0.01),
        (kernels.sharpness, 0.1, 0.01),
        (kernels.offset, 0, 5),
    ):
        # 256 draws: the mean is within 0.25 standard deviations and the spread within 20% but for one seed in 10000.
        assert abs(float(parameter.detach().mean()) - mean) < 0.25 * std
        assert float(parameter.detach().std()) == pytest.approx(std, rel=0.2)
    assert torch.equal(made().offset, made().offset)
    assert not torch.equal(made().offset, made(seed=1).offset)


def test_each_layer_starts_differently_and_the_global_generator_is_left_alone():
    scheme, _ = build(TisaConfig(per_layer=True), model_facts())
    state = torch.get_rng_state()
    first, second = scheme.make_layer(0).kernels, scheme.make_layer(1).kernels
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.offset, second.offset)


@pytest.mark.parametrize("kind", ["whole", "skipping"])
def test_every_parameter_learns(kind):
    facts = model_facts()
    scheme, layer = build(TisaConfig(), facts)
    run_scheme(scheme, layer, make_call(kind, facts), "sdpa").square().sum().backward()
    for parameter in scheme.parameters():
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).all()


def test_half_precision_keeps_float32_biases_and_the_cheap_kind():
    positions = Positions(*[torch.arange(4100)[None]] * 2, offset=0, causal=True)
    scheme, _ = build(TisaConfig(), model_facts())
    scheme.to(torch.bfloat16)
    with torch.no_grad():
        scheme.kernels.offset.fill_(-4096)
        scheme.kernels.sharpness.fill_(0.1)
        scheme.kernels.amplitude.fill_(1)
    bias = scheme.prepare(positions)
    assert isinstance(bias, RelativeBias)
    assert bias.values.dtype == torch.float32
    far = bias.values[:, -2:]  # distances 4098 and 4099, the same number in bfloat16
    assert (far[:, 0] > far[:, 1]).all()


def curve_of(values: torch.Tensor, causal: bool, seed: int = 0) -> Curve:
    """A curve over 64 tokens with random weights, whose constant per head is unknown as it is in calibration."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(values.shape, generator=generator)
    weights = weights * (DISTANCES >= 0) if causal else weights
    return Curve(DISTANCES, values + torch.randn(values.shape[0], 1, generator=generator), weights)


def unexplained(kernels: Kernels, curve: Curve) -> torch.Tensor:
    """The share of each head's weighted variance that the bell curves leave, (H,)."""
    left = Curve(curve.distances, curve.values - kernels.values(curve.distances), curve.weights).centred()
    whole = curve.centred()
    return (left.weights * left.values.square()).sum(1) / (whole.weights * whole.values.square()).sum(1)


@pytest.mark.parametrize("causal", [True, False])
def test_calibration_finds_bell_curves_that_made_the_curve(causal):
    truth = made(kernels=3)
    with torch.no_grad():
        truth.amplitude.copy_(torch.tensor([2.0, -1.0, 1.5]))
        truth.sharpness.copy_(torch.tensor([0.5, 0.02, 0.002]))
        truth.offset.copy_(torch.tensor([-1.0, -12.0, -30.0]) + torch.arange(4)[:, None])
    curve = curve_of(truth.values(DISTANCES).detach(), causal)
    scheme, _ = build(TisaConfig(), model_facts(causal=causal))
    assert scheme.fit([curve, curve])
    layer = build(TisaConfig(per_layer=True), model_facts(causal=causal))[1]
    assert layer.fit(curve)
    for kernels in (scheme.kernels, layer.kernels):
        assert (unexplained(kernels, curve) < 1e-3).all()


@pytest.mark.parametrize("causal", [True, False])
def test_more_bell_curves_fit_a_smooth_curve_better_and_stay_moderate(causal):
    values = -torch.log1p(DISTANCES.abs().float()) * torch.arange(1, 5)[:, None]
    curve = curve_of(values, causal)
    left = []
    for count in (1, 3, 5):
        layer = build(TisaConfig(per_layer=True, kernels=count), model_facts(causal=causal))[1]
        layer.fit(curve)
        left.append(unexplained(layer.kernels, curve))
        # Values of the curve reach 17; near twins that grow against each other would have heights of hundreds.
        assert layer.kernels.amplitude.abs().max() < 60
        assert (layer.kernels.sharpness > 0).all()
        assert (layer.kernels.sharpness <= 1 / (2 * NARROWEST**2) + 1e-6).all()
    assert (left[1] < left[0]).all()
    assert (left[2] < left[1]).all()
    assert (left[2] < 0.01).all()


def test_a_curve_that_says_nothing_gives_no_bias():
    layer = build(TisaConfig(per_layer=True), model_facts())[1]
    assert layer.fit(curve_of(torch.zeros(4, 127), causal=True))
    assert layer.kernels.values(DISTANCES).abs().max() < 1e-4


def test_shared_and_own_parameters_are_fitted_where_they_are():
    curve = curve_of(torch.zeros(4, 127), causal=True)
    shared, without = build(TisaConfig(), model_facts())
    own, layer = build(TisaConfig(per_layer=True), model_facts())
    assert (shared.fit([curve]), without.fit(curve), own.fit([curve]), layer.fit(curve)) == (True, False, False, True)


@pytest.mark.parametrize("options", [{"kernels": 0}, {"seed": -1}, {"per_layer": "yes"}])
def test_bad_options_are_refused(options):
    with pytest.raises(SchemeConfigError, match=rf"tisa option '{next(iter(options))}'"):
        TisaConfig(**options)

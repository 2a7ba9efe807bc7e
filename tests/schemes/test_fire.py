"""fire against its oracle: below the threshold, above it and with a learned one; its cost, and its calibration."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hf_posswap.common.biases import DenseBias, RelativeBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes import Scheme, SchemeLayer, check_supported
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.fire import FireConfig, Function
from tests.attention.test_memory import LargestStorage
from tests.reference import (
    CALLS,
    as_array,
    assert_close_where_real,
    build,
    layer_bias,
    make_call,
    model_facts,
    randomise,
    run_oracle,
    run_scheme,
)

DISTANCES = torch.arange(-63, 64)


def function_of(scheme: Scheme, layer: SchemeLayer) -> Function:
    """The function that a layer uses."""
    return scheme.function or layer.function


def made(causal: bool = True, **options: Any) -> tuple[Scheme, SchemeLayer]:
    """A scheme and a layer with random weights, whose hidden units switch between the shares 0 and 1."""
    scheme, layer = build(FireConfig(**options), model_facts(causal=causal))
    function = function_of(scheme, layer)
    with torch.no_grad():
        function.hidden_bias.copy_(-function.hidden_weight[:, 0] * torch.rand(function.hidden_bias.shape))
        function.stretch.fill_(0.3)
        if function.threshold_factor is not None:
            function.threshold_factor.fill_(1.0)
    return scheme, layer


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 100},
        {"threshold": 4, "per_layer": False},
        {"threshold": 5, "learn_threshold": True},
    ],
    ids=["below", "above", "learned"],
)
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, options):
    if not causal:  # which refuse to learn it
        options = options | {"learn_threshold": False}
    call = make_call(kind, model_facts(causal=causal))
    scheme, layer = made(causal, **options)
    function = function_of(scheme, layer)
    factor = 1.0
    if function.threshold_factor is not None:
        with torch.no_grad():
            function.threshold_factor.fill_(-1.3)
        factor = 1.3
    expected = run_oracle(
        "fire", call, causal=causal, c=function.stretch.item(), threshold=factor * options["threshold"],
        hidden=as_array(function.hidden_weight), hidden_bias=as_array(function.hidden_bias),
        output=as_array(function.output_weight), output_bias=as_array(function.output_bias),
    )  # fmt: skip
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa"), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_the_pieces_are_the_network_and_have_its_gradients(causal):
    function = function_of(*made(causal, width=64))
    share = torch.rand(2, 50, requires_grad=True)
    side = torch.tensor([1.0, -1.0])[:, None].expand(2, 50)
    inputs = share[..., None] if causal else torch.stack((share, side), dim=-1)
    hidden = F.relu(F.linear(inputs, function.hidden_weight, function.hidden_bias))
    expected = F.linear(hidden, function.output_weight, function.output_bias).movedim(-1, 0)
    distance = torch.where(side < 0, -1, 1)
    function.normalised = lambda distance, farthest: share
    actual = function.values(distance, torch.tensor(1.0))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    weights = [w for w in function.parameters() if w is not function.stretch]
    weighting = torch.randn_like(actual)
    gradients = [torch.autograd.grad((x * weighting).sum(), [share, *weights]) for x in (actual, expected)]
    # Sums of a hundred products of order 1.
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_units_without_weight_and_twins_are_summed_like_the_others():
    function = function_of(*made(width=4))
    with torch.no_grad():
        function.hidden_weight.copy_(torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
        function.hidden_bias.copy_(torch.tensor([0.5, 0.0, -0.25, -0.25]))
        share = function.normalised(torch.arange(10), torch.tensor(9.0))
        hidden = F.relu(share[:, None] @ function.hidden_weight.t() + function.hidden_bias)
        expected = (hidden @ function.output_weight.t() + function.output_bias).t()
        actual = function.values(torch.arange(10), torch.tensor(9.0))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_texts_up_to_the_threshold_cost_one_value_a_distance_and_longer_ones_a_block_of_rows():
    scheme, layer = made(threshold=10)
    query = torch.zeros(1, 4, 11, 8)
    kinds = []
    for length in (10, 11, 12):
        at = torch.arange(length)[None]
        positions = Positions(at, at, offset=0, causal=True)
        kinds.append(type(layer_bias(layer, query, positions, scheme.prepare(positions))))
    assert kinds == [RelativeBias, RelativeBias, DenseBias]


def test_a_text_past_the_threshold_holds_no_tensor_of_heads_times_length_times_length():
    facts = model_facts()
    length = 2048
    scheme, layer = made(threshold=64)
    call = make_call("whole", facts, length=length)
    with torch.no_grad(), LargestStorage() as record:
        assert run_scheme(scheme, layer, call, "sdpa").isfinite().all()
    # 256 rows of slopes and of intercepts, for 2 texts and 4 heads, a fourth of the whole bias.
    assert record.bytes <= 2 * (2 * 4 * 4) * 256 * length


def test_a_longer_text_is_read_at_the_scale_of_the_query():
    function = function_of(*made(threshold=8))
    at = torch.arange(33)[None]
    rows = function.bias(Positions(at, at, offset=0, causal=True)).rows(0, 33)[0]
    first_key = rows[:, 8:, 0]  # for queries past the threshold the first key is at the share 1
    # ψ(i)/(ψ(i) + 1e-6) differs from 1 by up to 2e-6.
    torch.testing.assert_close(first_key, first_key[:, :1].expand_as(first_key), atol=1e-4, rtol=1e-4)
    assert (rows[:, 32, 31] - rows[:, 16, 15]).abs().max() > 1e-3  # the same distance at another scale


@pytest.mark.parametrize("kind", ["whole", "skipping"])
@pytest.mark.parametrize("causal", [True, False])
def test_every_parameter_learns(causal, kind):
    facts = model_facts(causal=causal)
    scheme, layer = made(causal, threshold=6, learn_threshold=causal)
    run_scheme(scheme, layer, make_call(kind, facts), "sdpa").square().sum().backward()
    function = function_of(scheme, layer)
    assert function.hidden_weight.grad.any(dim=0).all()
    for parameter in function.parameters():
        assert parameter.grad.isfinite().all()
        # The output bias adds the same to all scores of a row, which softmax does not see: rounding is left of it.
        assert parameter.grad.any() or parameter is function.output_bias


def test_starts_by_the_seed_and_the_layer_and_leaves_the_global_generator_alone():
    scheme, _ = build(FireConfig(), model_facts())
    state = torch.get_rng_state()
    first, again, second = scheme.make_layer(0), scheme.make_layer(0), scheme.make_layer(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.function.hidden_weight, again.function.hidden_weight)
    assert not torch.equal(first.function.hidden_weight, second.function.hidden_weight)
    assert first.function.stretch.item() == pytest.approx(0.1)
    assert float(first.function.output_weight.detach().abs().max()) <= 32**-0.5


def test_half_precision_weights_give_float32_biases():
    layer = made(threshold=5000)[1]
    layer.to(torch.bfloat16)
    at = torch.arange(4100)[None]
    bias = layer_bias(layer, torch.zeros(1, 4, 1, 8), Positions(at, at, offset=0, causal=True), None)
    assert isinstance(bias, RelativeBias)
    assert bias.values.dtype == torch.float32
    assert (bias.values[:, -1] != bias.values[:, -2]).any()  # distances 4098 and 4099, the same number in bfloat16


def curve_of(values: torch.Tensor, causal: bool) -> Curve:
    """A curve over 64 tokens with random weights, whose constant per head is unknown as it is in calibration."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(values.shape, generator=generator)
    weights = weights * (DISTANCES >= 0) if causal else weights
    return Curve(DISTANCES, values + torch.randn(values.shape[0], 1, generator=generator), weights)


def unexplained(function: Function, curve: Curve) -> torch.Tensor:
    """The share of each head's weighted variance that the function leaves, (H,)."""
    values = function.values(curve.distances, torch.tensor(float(function.threshold)))
    left = Curve(curve.distances, curve.values - values, curve.weights).centred()
    whole = curve.centred()
    return (left.weights * left.values.square()).sum(1) / (whole.weights * whole.values.square()).sum(1)


@pytest.mark.parametrize("per_layer", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_calibration_fits_curves_whose_sides_differ(causal, per_layer):
    magnitude = DISTANCES.abs().float()
    values = -torch.log1p(magnitude) * torch.arange(1, 5)[:, None] - 0.05 * magnitude * (DISTANCES < 0)
    curve = curve_of(values + 2.0 * (DISTANCES < 0), causal)
    config = FireConfig(threshold=64, per_layer=per_layer)
    scheme, layer = build(config, model_facts(causal=causal))
    randomise(scheme)
    with torch.no_grad():
        function_of(scheme, layer).stretch.fill_(0.1)
    assert (layer.fit(curve), scheme.fit([curve, curve])) == (per_layer, not per_layer)
    assert (unexplained(function_of(scheme, layer), curve) < 1e-3).all()


def test_calibration_on_texts_shorter_than_the_threshold_is_constant_beyond_them():
    layer = build(FireConfig(threshold=4096), model_facts())[1]
    layer.fit(curve_of(-DISTANCES.abs().float().expand(4, -1), causal=True))
    values = layer.function.values(torch.arange(63, 4096), torch.tensor(4096.0))
    torch.testing.assert_close(values, values[:, :1].expand_as(values))


@pytest.mark.parametrize("options", [{"threshold": 1}, {"seed": -1}, {"per_layer": "yes"}, {"width": 1}])
def test_bad_options_are_refused(options):
    with pytest.raises(SchemeConfigError, match=rf"fire option '{next(iter(options))}'"):
        FireConfig(**options)


def test_an_encoder_does_not_learn_the_threshold():
    with pytest.raises(UnsupportedError, match="learn_threshold is for causal models"):
        check_supported(FireConfig(learn_threshold=True), model_facts(causal=False))


def test_the_threshold_is_the_train_length():
    assert FireConfig().resolve(model_facts()).threshold == 16
    assert FireConfig(threshold=5).resolve(model_facts()).threshold == 5

"""dape against its oracle; the bias under it, how it is named, its cost, and what is refused."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_posswap.attention import sdpa
from hf_posswap.common.biases import DenseBias, RelativeBias
from hf_posswap.common.score_biases import ScoredPairs, TransformedBias
from hf_posswap.errors import SchemeConfigError, UnknownNameError, UnsupportedError
from hf_posswap.schemes import as_config, check_supported, parse_scheme, scheme_class, scheme_text
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.dape import DapeConfig
from hf_posswap.schemes.kerple import KerpleConfig
from tests.attention.test_memory import LargestStorage
from tests.oracles.alibi import slopes
from tests.reference import (
    CALLS,
    as_array,
    assert_close_where_real,
    build,
    layer_bias,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)

NETWORK = ("hidden_weight", "hidden_bias", "output_weight")


@pytest.mark.parametrize("over", ["alibi", "relative_bias:max_distance=4"])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, over, monkeypatch):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    scheme, layer = build(DapeConfig(over=over, width=5), facts)
    if over == "alibi":
        m = slopes(4)

        def bias(h, distance):
            return -m[h] * abs(distance)

    else:
        table = as_array(layer.under.table)

        def bias(h, distance):
            return table[h, min(distance, 4) if causal else max(-4, min(4, distance)) + 4]

    weights = {name: as_array(getattr(layer, name)) for name in NETWORK}
    expected = run_oracle("dape", call, bias=bias, **weights)
    assert_close_where_real(call, run_scheme(scheme, layer, call).detach(), expected)
    monkeypatch.setattr(sdpa, "QUERY_BLOCK", 4)  # several blocks of queries
    with torch.no_grad():
        assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa"), expected)


def transformed(rows: torch.Tensor, **options: bool) -> tuple[TransformedBias, torch.Tensor]:
    """A random network over bias rows (1, 4, 9, 9), and scores."""
    weights = [torch.randn(shape, **options) for shape in ((6, 8), (6,), (4, 6))]
    q, k = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8)
    pairs = ScoredPairs(q, k, 8**-0.5, 0, causal=False)
    under = DenseBias(lambda start, stop: rows[:, :, start:stop])
    bias = TransformedBias(pairs=pairs, under=under, **dict(zip(NETWORK, weights, strict=True)))
    return bias, pairs.scores(0, 9)


def test_equals_the_network_as_torch_has_it():
    rows = torch.randn(1, 4, 9, 9)
    bias, scores = transformed(rows)
    inputs = torch.cat((scores, rows.expand(2, -1, -1, -1)), dim=1).permute(0, 2, 3, 1)
    hidden = F.leaky_relu(F.linear(inputs, bias.hidden_weight, bias.hidden_bias))
    expected = rows + F.linear(hidden, bias.output_weight).permute(0, 3, 1, 2)
    torch.testing.assert_close(bias.rows(0, 9), expected, atol=1e-4, rtol=1e-4)  # in one piece
    with torch.no_grad():  # in pieces of rows
        torch.testing.assert_close(bias.rows(0, 9), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(bias.added(scores, 0, 9, None), scores + expected, atol=1e-4, rtol=1e-4)
    half = bias.scaled(torch.tensor(0.5))
    torch.testing.assert_close(half.rows(0, 9), expected / 2, atol=1e-4, rtol=1e-4)


def test_hidden_pairs_send_nothing_into_gradients():
    rows = torch.randn(1, 4, 9, 9)
    rows[..., 2] = -math.inf  # the bias hides a key
    bias, scores = transformed(rows, requires_grad=True)
    scores[:, :, :, 5] = math.nan  # an unused entry of a cache, which the mask hides
    visible = torch.ones(9, 9, dtype=torch.bool)
    visible[:, 5] = False
    added = bias.added(scores, 0, 9, visible)
    seen = [0, 1, 3, 4, 6, 7, 8]
    assert added[..., seen].isfinite().all()
    assert added[..., 2].isneginf().all()
    weights = [getattr(bias, name) for name in NETWORK]
    gradients = torch.autograd.grad(
        added.masked_fill(~visible, -math.inf).softmax(-1).square().sum(), weights, retain_graph=True
    )
    expected = torch.autograd.grad(added[..., seen].softmax(-1).square().sum(), weights)
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_starts_as_the_bias_under_it_and_every_parameter_learns(causal):
    facts = model_facts(causal=causal)
    call = make_call("padded", facts)
    scheme = scheme_class("dape")(DapeConfig(), facts)
    layer = scheme.make_layer(0)
    under = scheme_class("kerple")(KerpleConfig(), facts)
    actual = run_scheme(scheme, layer, call, "sdpa")
    assert_close_where_real(call, actual.detach(), run_scheme(under, under.make_layer(0), call, "sdpa").detach())
    scheme, layer = build(DapeConfig(), facts)
    run_scheme(scheme, layer, call, "sdpa")[:, :, 3:].square().sum().backward()
    for parameter in (*scheme.parameters(), *layer.parameters()):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_networks_start_by_the_seed_and_the_layer():
    scheme = scheme_class("dape")(DapeConfig(over="alibi"), model_facts())
    first, again, second = scheme.make_layer(0), scheme.make_layer(0), scheme.make_layer(1)
    assert torch.equal(first.hidden_weight, again.hidden_weight)
    assert not torch.equal(first.hidden_weight, second.hidden_weight)
    assert not first.output_weight.any()


def test_calibration_fits_the_bias_and_leaves_the_network():
    facts = model_facts()
    scheme, layer = build(DapeConfig(over="relative_bias:max_distance=9"), facts)
    other = build(parse_scheme("relative_bias:max_distance=9"), facts)[1]
    before = layer.hidden_weight.detach().clone()
    distances = torch.arange(-11, 12)
    curve = Curve(distances, torch.randn(4, 23), torch.rand(4, 23) * (distances >= 0))
    assert layer.fit(curve)
    assert other.fit(curve)
    assert not scheme.fit([curve])
    assert torch.equal(layer.under.table, other.table)
    assert torch.equal(layer.hidden_weight, before)
    refused = scheme_class("dape")(DapeConfig(over="shaw:values=false:query_and_key=true"), facts)
    assert "by query only" in refused.calibration_refusal


def test_what_is_said_of_the_scheme_is_said_of_the_bias_under_it():
    encoder = model_facts(causal=False)
    for over, symmetric, depends in (("alibi", True, False), ("t5", False, False), ("fire", False, True)):
        config = DapeConfig(over=over).resolve(encoder)
        scheme = scheme_class("dape")(config, encoder)
        assert (scheme.symmetric(), scheme.length_dependent()) == (symmetric, depends)


def test_a_long_text_holds_no_tensor_of_heads_times_length_times_length():
    facts, length = model_facts(), 4096
    scheme, layer = build(DapeConfig(over="alibi"), facts)
    call = make_call("whole", facts, length=length)
    with torch.no_grad(), LargestStorage() as record:
        assert run_scheme(scheme, layer, call, "sdpa").isfinite().all()
    # 256 rows for 2 texts and 4 heads in float32, a sixteenth of the whole bias; the network reads its rows in pieces.
    assert record.bytes <= 4 * 2 * 4 * 256 * length


@pytest.mark.parametrize(
    ("text", "over"),
    [
        ("dape", "kerple"),
        ("dape:over=alibi:width=8", "alibi"),
        ("dape:over=(kerple:power)", "kerple:power"),
        ("dape:over=(t5:num_buckets=16:max_distance=40):seed=3:layers=0+1", "t5:num_buckets=16:max_distance=40"),
        ("dape:over=(t5:num_buckets=32)", "t5"),
    ],
)
def test_the_bias_is_named_as_text_and_kept_in_its_shortest_form(text, over):
    facts = model_facts()
    config = parse_scheme(text)
    assert config.over == over
    assert as_config(config.to_dict()) == config
    resolved = config.resolve(facts)
    assert parse_scheme(scheme_text(resolved, facts)).resolve(facts) == resolved


def test_options_that_depend_on_the_model_are_kept_with_the_bias():
    assert DapeConfig(over="fire").resolve(model_facts()).over == "fire:threshold=16"
    assert type(DapeConfig(over="fire:threshold=4").under).name == "fire"


@pytest.mark.parametrize(
    ("over", "causal", "reason"),
    [
        ("none", True, "scheme 'none' adds no bias"),
        ("learned", True, "scheme 'learned' acts at the embeddings"),
        ("rope", True, "scheme 'rope' does more than add a bias"),
        ("shaw", True, "scheme 'shaw' does more than add a bias"),
        ("transformer_xl", True, "scheme 'transformer_xl' does more than add a bias"),
        ("cope", True, "scheme 'cope' computes its bias from the scores"),
        ("cope", False, "scheme 'cope' does not fit the model .*nothing to count"),
        ("dape", True, "scheme 'dape' is dape again"),
    ],
)
def test_without_a_bias_to_adapt_it_is_refused_with_those_that_fit(over, causal, reason):
    facts = model_facts(causal=causal)
    with pytest.raises(UnsupportedError, match=rf"{reason}.*Schemes that fit: alibi, .*kerple, .*t5"):
        check_supported(DapeConfig(over=over).resolve(facts), facts)


def test_bad_options_are_refused():
    with pytest.raises(UnknownNameError, match="kerpel.*kerple"):
        DapeConfig(over="kerpel")
    for over in ("alibi:window=4", "alibi:layers=0", "alibi:keep_native=true"):
        with pytest.raises(SchemeConfigError, match="are options of dape itself.*Give them beside over"):
            DapeConfig(over=over)
    with pytest.raises(SchemeConfigError, match="kerple option 'seed' is -1"):
        parse_scheme("dape:over=(kerple:seed=-1)")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_half_precision_rounds_queries_keys_and_values_but_no_scores(backend):
    facts = model_facts(causal=False)
    call = make_call("whole", facts)
    rounded = {name: getattr(call, name).bfloat16() for name in ("q", "k", "v")}
    scheme, layer = build(DapeConfig(over="alibi"), facts)
    exact = type(call)(**{**vars(call), **{name: x.double() for name, x in rounded.items()}})
    with torch.no_grad():
        expected = run_scheme(scheme, layer, exact, "eager")
        actual = run_scheme(scheme, layer, type(call)(**{**vars(call), **rounded}), backend)
    # Weights, values and the result have 8 bits. Rounded scores would be off by as much times the network's gain.
    torch.testing.assert_close(actual.double(), expected, atol=2**-8, rtol=2**-7)


def test_the_network_computes_in_float32_over_a_bias_of_any_kind():
    facts = model_facts()
    scheme, layer = build(DapeConfig(over="t5"), facts)
    layer.to(torch.bfloat16)
    positions = make_call("whole", facts).positions(0, 11)
    bias = layer_bias(layer, torch.zeros(1, 4, 11, 8).bfloat16(), positions, scheme.prepare(positions))
    assert isinstance(bias.under, RelativeBias)
    assert bias.rows(0, 11).dtype == torch.float32

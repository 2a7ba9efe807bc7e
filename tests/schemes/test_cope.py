"""cope against its oracle and the listing in its paper; what is counted, its cost, and its refusals."""

import math

import pytest
import torch

from hf_posswap.attention import attend, sdpa
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.score_biases import CountedBias, ScoredPairs
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes import check_supported, scheme_class
from hf_posswap.schemes.cope import CopeConfig
from tests.attention.test_memory import LargestStorage
from tests.reference import (
    CAUSAL_CALLS,
    as_array,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize("positions", [3, 64], ids=["clamped", "within"])
@pytest.mark.parametrize("kind", CAUSAL_CALLS)
def test_equals_the_oracle(kind, positions, monkeypatch):
    facts = model_facts()
    call = make_call(kind, facts)
    scheme, layer = build(CopeConfig(positions=positions), facts)
    expected = run_oracle("cope", call, vectors=as_array(layer.position_vectors))
    assert_close_where_real(call, run_scheme(scheme, layer, call).detach(), expected)
    monkeypatch.setattr(sdpa, "QUERY_BLOCK", 4)  # several blocks of queries
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa").detach(), expected)


def made(length: int = 12, positions: int = 6) -> tuple[CountedBias, torch.Tensor]:
    """A bias of random queries, keys and vectors, and its scores."""
    query, key = torch.randn(2, 4, length, 8), torch.randn(2, 4, length, 8)
    table = torch.randn(positions, 8, requires_grad=True)
    pairs = ScoredPairs(query.requires_grad_(), key.requires_grad_(), 8**-0.5, 0, True)
    return CountedBias(pairs=pairs, table=table), pairs.scores(0, length)


def test_equals_the_listing_in_the_paper_and_has_its_gradients():
    bias, scores = made()
    hidden = torch.ones(12, 12, dtype=torch.bool).triu(1)
    gates = torch.sigmoid(scores.masked_fill(hidden, -math.inf))
    position = gates.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=5)
    ceil, floor = position.ceil().long(), position.floor().long()
    whole = bias.pairs.query @ bias.table.t() * 8**-0.5
    share = position - floor
    listed = whole.gather(-1, ceil) * share + whole.gather(-1, floor) * (1 - share)
    actual = bias.summand(scores, 0, 12, ~hidden)
    torch.testing.assert_close(actual, listed, atol=1e-5, rtol=1e-5)
    weighting = torch.randn_like(listed).masked_fill(hidden, 0)
    leaves = [bias.pairs.query, bias.pairs.key, bias.table]
    gradients = [torch.autograd.grad((x * weighting).sum(), leaves, retain_graph=True) for x in (actual, listed)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_a_bias_read_outside_attention_is_the_one_that_attention_adds():
    bias, scores = made()
    visible = torch.ones(12, 12, dtype=torch.bool).tril()
    added = bias.added(scores, 0, 12, visible) - scores
    torch.testing.assert_close(bias.rows(0, 12), added, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bias.rows(5, 9), added[:, :, 5:9], atol=1e-5, rtol=1e-5)
    half = bias.scaled(torch.tensor(0.5))
    torch.testing.assert_close(half.rows(0, 12), added / 2, atol=1e-5, rtol=1e-5)


def test_gates_that_are_open_count_tokens_and_closed_ones_count_nothing():
    bias, scores = made(positions=13)
    visible = torch.ones(12, 12, dtype=torch.bool).tril()
    open_gates = bias.summand(torch.full_like(scores, 30.0), 0, 12, visible)
    products = bias.pairs.queries(0, 12) @ bias.table.t()
    position = (torch.arange(12)[:, None] - torch.arange(12) + 1).clamp(min=0)  # the query itself counts
    by_token = products.gather(-1, position.expand(2, 4, 12, 12))
    # Thirty is e^30 to one, a gate of 1 in float32.
    torch.testing.assert_close(open_gates, by_token, atol=1e-5, rtol=1e-5)
    closed = bias.summand(torch.full_like(scores, -200.0), 0, 12, visible)
    torch.testing.assert_close(closed, products[..., :1].expand_as(closed))


def test_gates_read_scores_after_a_softcap():
    facts = model_facts(num_key_value_heads=4)
    call = make_call("whole", facts)
    layer = build(CopeConfig(positions=5), facts)[1]
    pairs = ScoredPairs(call.q * 5, call.k, 1.0, 0, True)
    bias = CountedBias(pairs=pairs, table=layer.position_vectors.float())
    inputs = AttentionInputs(call.q * 5, call.k, call.v, None, True, 1.0, softcap=2.0)
    visible = torch.ones(11, 11, dtype=torch.bool).tril()
    capped = torch.tanh(pairs.scores(0, 11) / 2) * 2
    scores = (capped + bias.summand(capped, 0, 11, visible)).masked_fill(~visible, -math.inf)
    for backend in ("eager", "sdpa"):
        context = attend(inputs, bias, None, backend)[0]
        torch.testing.assert_close(context, scores.softmax(-1) @ call.v, atol=1e-5, rtol=1e-5)


def test_starts_as_no_position_and_every_vector_that_is_counted_learns():
    facts = model_facts()
    assert not scheme_class("cope")(CopeConfig(), facts).make_layer(0).position_vectors.any()
    scheme, layer = build(CopeConfig(positions=4), facts)
    run_scheme(scheme, layer, make_call("whole", facts), "sdpa").square().sum().backward()
    assert layer.position_vectors.grad.any(dim=1).all()


def test_a_long_text_holds_no_tensor_of_heads_times_length_times_length():
    facts, length = model_facts(), 4096
    scheme, layer = build(CopeConfig(), facts)
    call = make_call("whole", facts, length=length)
    with torch.no_grad(), LargestStorage() as record:
        assert run_scheme(scheme, layer, call, "sdpa").isfinite().all()
    # 256 rows for 2 texts and 4 heads; whole positions are int64: an eighth of the whole bias.
    assert record.bytes <= 8 * 2 * 4 * 256 * length


def test_refusals():
    with pytest.raises(UnsupportedError, match="for keys after the query there is nothing to count"):
        check_supported(CopeConfig(), model_facts(causal=False))
    with pytest.raises(SchemeConfigError, match="cope option 'positions' is 1; it must be at least 2"):
        CopeConfig(positions=1)
    assert "Heal it from the start" in scheme_class("cope")(CopeConfig(), model_facts()).calibration_refusal

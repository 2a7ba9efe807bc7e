"""relative_bias against its oracle, and what it takes from a curve."""

import pytest
import torch

from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.relative_bias import RelativeBiasConfig
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


@pytest.mark.parametrize(("causal", "kind"), CALLS)
@pytest.mark.parametrize("longest", [4, 50])
def test_equals_the_oracle(causal, kind, longest):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    scheme, layer = build(RelativeBiasConfig(max_distance=longest), facts)
    first = 0 if causal else -longest
    expected = run_oracle("relative_bias", call, table=as_array(layer.table), first=first)
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa"), expected)


@pytest.mark.parametrize(("train_length", "longest"), [(256, 255), (8192, 1023), (1, 1)])
def test_the_limit_comes_from_the_train_length(train_length, longest):
    config = RelativeBiasConfig().resolve(model_facts(train_length=train_length))
    assert config.max_distance == longest


@pytest.mark.parametrize("causal", [True, False])
def test_fitting_a_curve_gives_the_curve_near_the_query_and_its_end_beyond(causal):
    facts = model_facts(causal=causal)
    _, layer = build(RelativeBiasConfig(max_distance=9), facts)
    distances = torch.arange(-6, 7)
    values = torch.randn(facts.num_heads, 13)
    weights = torch.ones_like(values)
    if causal:
        weights[:, :6] = 0
    assert layer.fit(Curve(distances, values, weights))
    first = 0 if causal else -9
    for column, distance in enumerate(range(first, 10)):
        expected = values[:, min(max(distance, 0 if causal else -6), 6) + 6]
        torch.testing.assert_close(layer.table[:, column].detach(), expected)

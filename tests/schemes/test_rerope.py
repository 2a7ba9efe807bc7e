"""rerope against its oracle, with and without a leak, and how far it reaches."""

import pytest

from hf_posswap.schemes.rerope import ReropeConfig
from tests.reference import CALLS, assert_close_where_real, build, make_call, model_facts, run_oracle, run_scheme


@pytest.mark.parametrize("leak", [None, 2.5])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, leak):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    options = {"neighbours": 3, "leak": leak, "base": 100.0}
    actual = run_scheme(*build(ReropeConfig(**options), facts), call, "sdpa")
    assert_close_where_real(call, actual, run_oracle("rerope", call, **options))


def test_has_no_limit_unless_distances_leak():
    facts = model_facts(train_length=4096)
    assert build(ReropeConfig(), facts)[0].made_for() is None
    assert build(ReropeConfig(), facts)[0].config.neighbours == 1024
    assert build(ReropeConfig(neighbours=512, leak=16), facts)[0].made_for() == 512 + 3584 * 16

"""self_extend against its oracle, its distances, and how far it reaches."""

import pytest

from hf_posswap.schemes.self_extend import SelfExtend, SelfExtendConfig
from tests.oracles.self_extend import distance
from tests.reference import CALLS, assert_close_where_real, build, make_call, model_facts, run_oracle, run_scheme


@pytest.mark.parametrize(("neighbours", "group"), [(3, 2), (4, 3), (1, 5)])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, neighbours, group):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    options = {"neighbours": neighbours, "group": group, "base": 100.0}
    actual = run_scheme(*build(SelfExtendConfig(**options), facts), call, "sdpa")
    assert_close_where_real(call, actual, run_oracle("self_extend", call, **options))


def test_the_papers_figure():
    """Figure 3: ten tokens in a model of seven, a window of four and groups of two."""
    rows = [[distance(i, j, 4, 2) for j in range(i + 1)] for i in (4, 7, 9)]
    assert rows == [[4, 3, 2, 1, 0], [5, 5, 4, 4, 3, 2, 1, 0], [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]]


def test_reaches_as_far_as_the_paper_says():
    facts = model_facts(train_length=4096)
    scheme, _ = build(SelfExtendConfig(neighbours=1024, group=5), facts)
    assert scheme.made_for() == 16_384
    assert scheme.longest_position() is None
    scheme, _ = build(SelfExtendConfig(), facts)
    assert isinstance(scheme, SelfExtend)
    assert (scheme.config.neighbours, scheme.config.group) == (1024, 6)
    assert distance(scheme.made_for() - 1, 0, 1024, 6) == 4096  # one more than trained, as 6 does not divide 1024
    assert distance(16_383 - 3 * 1024, 0, 1024, 4) == 4095

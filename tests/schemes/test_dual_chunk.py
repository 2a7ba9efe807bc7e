"""dual_chunk against its oracle, the distances of the paper's figure, and encoders."""

import pytest

from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import check_supported
from hf_posswap.schemes.dual_chunk import DualChunkConfig
from tests.oracles.dual_chunk import positions
from tests.reference import (
    CAUSAL_CALLS,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize(("chunk", "local"), [(3, 2), (4, 4), (1, 1)])
@pytest.mark.parametrize("kind", CAUSAL_CALLS)
def test_equals_the_oracle(kind, chunk, local):
    facts = model_facts()
    call = make_call(kind, facts)
    options = {"chunk": chunk, "local": local, "base": 100.0}
    actual = run_scheme(*build(DualChunkConfig(**options), facts), call, "sdpa")
    assert_close_where_real(call, actual, run_oracle("dual_chunk", call, **options))


def test_the_papers_figure():
    """Figure 2: chunks of six in a model of ten, so a local window of four; no distance is beyond nine."""
    pairs = [[positions(i, j, 6, 4) for j in range(12)] for i in (11, 12)]
    last, first = [[query - key for query, key in row] for row in pairs]
    assert last == [9, 8, 7, 6, 5, 4, 5, 4, 3, 2, 1, 0]
    assert first == [9, 8, 7, 6, 5, 4, 6, 5, 4, 3, 2, 1]
    assert [max(last), max(first)] == [9, 9]
    assert all(a - b == i - j for i in range(40) for j in range(i) if i - j <= 4 for a, b in [positions(i, j, 6, 4)])


def test_the_defaults_are_the_papers_and_there_is_no_limit():
    scheme, _ = build(DualChunkConfig(), model_facts(train_length=4096))
    assert scheme.config.sizes == (3072, 1024)
    assert scheme.made_for() is None
    assert build(DualChunkConfig(chunk=100), model_facts(train_length=16))[0].config.sizes == (100, 1)
    assert build(DualChunkConfig(local=14), model_facts(train_length=16))[0].config.sizes == (14, 14)


def test_encoders_are_refused():
    with pytest.raises(UnsupportedError, match="no position for keys in later chunks"):
        check_supported(DualChunkConfig(), model_facts(causal=False))

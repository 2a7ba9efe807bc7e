"""sandwich against its oracle, and what the paper says of it: zero at the query, falling like a logarithm, by head."""

import math

import pytest
import torch

from hf_posswap.common.biases import DenseBias, RelativeBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.sandwich import SandwichConfig, sandwich_values
from tests.oracles.sandwich import embedding
from tests.reference import (
    CALLS,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize("dimension", [128, 6])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, dimension):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    actual = run_scheme(*build(SandwichConfig(dimension=dimension), facts), call, "sdpa")
    assert_close_where_real(call, actual, run_oracle("sandwich", call, dimension=dimension))


def test_far_distances_equal_the_inner_product_of_embeddings():
    heads, dimension, far = 12, 128, [0, 1, 500, 4096, 32768]
    values = sandwich_values(torch.tensor(far), heads, dimension).double()
    for column, distance in enumerate(far):
        product = math.fsum(x * y for x, y in zip(embedding(7, 128), embedding(7 + distance, 128), strict=True))
        expected = torch.tensor([(product - 64) / (8 * h / heads) for h in range(1, heads + 1)], dtype=torch.float64)
        # An angle of 28,000 in float32 is off by up to 0.001, and so is its cosine; 64 of them, times 1.5 in head 1.
        torch.testing.assert_close(values[:, column], expected, atol=2e-3, rtol=0)


def test_is_zero_at_the_query_and_falls_towards_far_keys_about_like_a_logarithm():
    values = sandwich_values(torch.arange(1025), 8, 128)
    assert torch.equal(values[:, 0], torch.zeros(8))
    near, middle, far = values[0, [4, 64, 1024]].tolist()
    # Four doublings cost about as much near the query as far from it; along a line the later ones cost 16 times more.
    assert 0.8 < (middle - far) / (near - middle) < 1.25


def test_heads_differ_by_the_compression_ratio():
    values = sandwich_values(torch.arange(1, 50), 8, 128)
    for head in range(8):
        torch.testing.assert_close(values[head] * (head + 1), values[0])


def test_bias_kind_is_a_vector_where_distances_follow_the_indices():
    scheme, _ = build(SandwichConfig(), model_facts())
    steps = torch.arange(9)[None]
    assert isinstance(scheme.prepare(Positions(steps, steps, 0, causal=True)), RelativeBias)
    assert isinstance(scheme.prepare(Positions(2 * steps, 2 * steps, 0, True, by_index=False)), DenseBias)


@pytest.mark.parametrize(("dimension", "message"), [(7, "must be even"), (0, "at least 2")])
def test_a_width_that_sine_and_cosine_cannot_share_is_refused(dimension, message):
    with pytest.raises(SchemeConfigError, match=rf"sandwich option 'dimension'.*{message}"):
        SandwichConfig(dimension=dimension)

"""Bias kinds: rows in any block equal the formula, in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.biases import LinearBias, RelativeBias, SeparableBias
from tests.attention.kinds import KINDS, make_bias

lengths = st.integers(1, 12)


def inputs_of(queries, keys, batch=2, heads=3, dim=4):
    q, k = torch.randn(batch, heads, queries, dim), torch.randn(batch, heads, keys, dim)
    return AttentionInputs(q, k, k, None, True, dim**-0.5)


@pytest.mark.parametrize("kind", KINDS)
@given(queries=lengths, keys=lengths, data=st.data())
@settings(max_examples=25, deadline=None)
def test_rows_of_every_block_equal_the_formula(kind, queries, keys, data):
    start = data.draw(st.integers(0, queries - 1))
    stop = data.draw(st.integers(start + 1, queries))
    bias, formula = make_bias(kind, inputs_of(queries, keys), offset=max(keys - queries, 0))
    rows = bias.rows(start, stop)
    assert rows.dtype == torch.float32
    assert rows.expand(2, 3, stop - start, keys).shape == (2, 3, stop - start, keys)
    expected = torch.tensor(
        [
            [[[formula(b, h, i, j) for j in range(keys)] for i in range(start, stop)] for h in range(3)]
            for b in range(2)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(rows.double().expand_as(expected), expected, atol=1e-5, rtol=1e-5)


@given(queries=lengths, keys=lengths, data=st.data())
@settings(max_examples=50, deadline=None)
def test_flipped_rows_are_the_rows_in_reverse(queries, keys, data):
    start = data.draw(st.integers(0, queries - 1))
    stop = data.draw(st.integers(start + 1, queries))
    bias = RelativeBias(torch.randn(2, queries + keys - 1), queries, keys)
    assert torch.equal(bias.flipped_rows(start, stop).flip(1), bias.rows(start, stop)[0])


def test_flipped_rows_read_a_vector_that_starts_inside_its_storage():
    values = torch.randn(5, 11)
    bias = RelativeBias(values[2:4], 4, 8)
    inside = values.flip(-1)[2:4]
    assert inside.storage_offset() > 0
    assert torch.equal(bias.flipped_rows(1, 3, inside).flip(1), bias.rows(1, 3)[0])


def test_linear_bias_is_minus_slope_times_distance():
    bias = LinearBias(torch.tensor([0.5, 2.0]), torch.arange(-2, 3), 3, 3)
    assert bias.rows(2, 3).tolist() == [[[[-1.0, -0.5, 0.0]], [[-4.0, -2.0, 0.0]]]]
    assert torch.equal(bias.as_relative().rows(0, 3), bias.rows(0, 3))


def test_linear_bias_is_exact_at_any_distance_float32_can_hold():
    length = 70000
    bias = LinearBias(torch.tensor([2.0**-8]), torch.arange(1 - length, length), length, length)
    row = bias.rows(length - 1, length)[0, 0, 0].double()
    assert torch.equal(row, -(2.0**-8) * torch.arange(length - 1, -1, -1, dtype=torch.float64))


def test_separable_bias_is_a_sum_of_products():
    left, right = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 5.0], [7.0, 11.0]]])
    assert SeparableBias(left, right).rows(0, 1).tolist() == [[[[13.0, 29.0]]]]


@pytest.mark.parametrize("kind", ["linear", "relative", "separable"])
def test_biases_that_no_query_reads_are_shared_by_the_batch(kind):
    bias, _ = make_bias(kind, inputs_of(4, 4), offset=0)
    assert bias.rows(0, 4).shape == (1, 3, 4, 4)

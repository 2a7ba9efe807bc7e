"""learned against its oracle: the model's own table, and the four ways to make it longer."""

import numpy as np
import pytest
import torch

import hf_posswap
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes import check_supported, scheme_class
from hf_posswap.schemes.learned import LearnedConfig, extend_table
from tests.matrix.cells import small_model
from tests.oracles.learned import embedding_oracle
from tests.reference import as_array, model_facts

MODES = ("interpolate", "hierarchical", "tile", "last-row")


def scheme_of(config, table=None, **changes):
    facts = model_facts(native_table=table, native="learned", **changes)
    config = config.resolve(facts)
    check_supported(config, facts)
    return scheme_class("learned")(config, facts)


def embed(scheme, *rows):
    at = torch.tensor(rows)
    return scheme.embed(Positions(at, at, offset=0, causal=True, by_index=False))


@pytest.mark.parametrize("length", [7, 14, 20, 49])
@pytest.mark.parametrize("how", MODES)
def test_extension_equals_the_oracle(how, length):
    table = torch.randn(7, 16)
    scheme = scheme_of(LearnedConfig(length=length, extend=how), table)
    rows = [list(range(length)), torch.randint(length, (length,)).tolist()]
    expected = torch.from_numpy(np.stack([embedding_oracle(row, as_array(table), length, how) for row in rows]))
    torch.testing.assert_close(embed(scheme, *rows).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.45])
def test_hierarchical_alpha_equals_the_oracle(alpha):
    table = torch.randn(5, 16)
    scheme = scheme_of(LearnedConfig(length=25, extend="hierarchical", alpha=alpha), table)
    expected = torch.from_numpy(embedding_oracle(list(range(25)), as_array(table), 25, "hierarchical", alpha))
    torch.testing.assert_close(scheme.table.detach().double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_own_table_is_taken_bit_for_bit(dtype):
    table = torch.randn(7, 16).to(dtype)
    scheme = scheme_of(LearnedConfig(), table)
    assert torch.equal(scheme.table, table)
    assert scheme.table.dtype == dtype
    assert scheme.table.data_ptr() != table.data_ptr()


@pytest.mark.parametrize("how", ["hierarchical", "tile", "last-row"])
def test_extensions_keep_the_old_rows(how):
    table = torch.randn(7, 16)
    assert torch.equal(extend_table(table, 30, how)[:7], table)


def test_interpolation_keeps_every_old_row_at_its_stretched_place():
    table = torch.randn(7, 16)
    longer = extend_table(table, 21, "interpolate")
    torch.testing.assert_close(longer[::3], table)
    assert torch.equal(longer[-2:], table[-1:].expand(2, -1)), "past the last row it is held"


def test_a_fresh_table_where_the_model_has_none():
    scheme = scheme_of(LearnedConfig(), None, train_length=64, hidden_size=128)
    assert scheme.table.shape == (64, 128)
    assert scheme.table.std().item() == pytest.approx(0.02, rel=0.05)
    assert scheme.longest_position() == 64


def test_rows_learn_where_they_are_read():
    scheme = scheme_of(LearnedConfig(length=10), torch.randn(5, 16))
    embed(scheme, [1, 4, 8]).sum().backward()
    assert scheme.table.grad.any(dim=1).nonzero().flatten().tolist() == [1, 4, 8]


def test_a_table_cannot_shrink():
    with pytest.raises(UnsupportedError, match=r"length=4 would cut the model's table of 7 positions"):
        scheme_of(LearnedConfig(length=4), torch.randn(7, 16))


def test_a_hierarchical_table_has_an_end():
    with pytest.raises(UnsupportedError, match="reaches 49 positions, not length=50"):
        scheme_of(LearnedConfig(length=50, extend="hierarchical"), torch.randn(7, 16))


def test_an_alpha_that_nothing_reads_is_refused():
    with pytest.raises(SchemeConfigError, match=r"'alpha' has no effect with extend='tile'"):
        LearnedConfig(extend="tile", alpha=0.2, length=50)


@pytest.mark.parametrize("how", ["hierarchical", "tile", "last-row"])
def test_a_way_to_extend_without_a_length_is_refused(how: str) -> None:
    with pytest.raises(SchemeConfigError, match=f"give its length too, as learned:{how}:length=4096"):
        LearnedConfig(extend=how)


def test_a_way_to_extend_is_refused_where_there_is_no_table() -> None:
    with pytest.raises(UnsupportedError, match="no position table that extend='tile' could make longer"):
        hf_posswap.swap(small_model("llama", True), "learned:tile:length=48")

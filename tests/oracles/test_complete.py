"""Every registered scheme has an oracle."""

import pytest

from hf_posswap.schemes import list_schemes
from tests.reference import oracle


@pytest.mark.parametrize("name", list_schemes())
def test_scheme_has_an_oracle_that_names_its_source(name):
    module = oracle(name)
    functions = [getattr(module, f, None) for f in ("attention_oracle", "embedding_oracle")]
    assert any(callable(function) for function in functions)
    assert module.__doc__, "the oracle's docstring names the paper and the equation"
    assert any(character.isdigit() for character in module.__doc__), "… with its number"

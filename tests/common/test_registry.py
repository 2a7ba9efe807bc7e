"""Registries: names are unique, order is kept, and an unknown name suggests the nearest one."""

import re
from types import SimpleNamespace

import pytest

from hf_posswap.common.registry import Registry, unknown_name_message
from hf_posswap.errors import PosSwapError, UnknownNameError
from hf_posswap.schemes import list_schemes, scheme_class, schemes


def filled(*names):
    registry = Registry("fruit")
    for name in names:
        registry.register(SimpleNamespace(name=name))
    return registry


def test_names_are_sorted_and_items_keep_their_order():
    registry = filled("pear", "apple")
    assert registry.names() == ["apple", "pear"]
    assert [item.name for item in registry] == ["pear", "apple"]
    assert registry.get("pear").name == "pear"


def test_a_name_is_taken_once():
    registry = filled("pear")
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        registry.register(SimpleNamespace(name="pear"))
    registry.register(registry.get("pear"))  # the same item again is no duplicate


def test_register_returns_the_item_so_that_it_decorates():
    item = SimpleNamespace(name="fig")
    assert filled().register(item) is item


@pytest.mark.parametrize(("typed", "meant"), [("aple", "apple"), ("APPLE", "apple"), ("paer", "pear")])
def test_an_unknown_name_suggests_the_nearest(typed, meant):
    with pytest.raises(UnknownNameError) as error:
        filled("pear", "apple").get(typed)
    assert str(error.value) == f"unknown fruit {typed!r}. Did you mean {meant!r}? Allowed: apple, pear."


def test_nothing_is_suggested_where_nothing_is_near():
    assert unknown_name_message("fruit", "zzz", ["apple"]) == "unknown fruit 'zzz'. Allowed: apple."


def test_our_errors_can_be_caught_together():
    with pytest.raises(PosSwapError):
        scheme_class("alibbi")
    assert issubclass(PosSwapError, ValueError)


def test_every_scheme_of_the_package_is_registered():
    expected = {"alibi", "learned", "none", "rope", "shaw", "sinusoidal", "t5", "transformer_xl"}
    assert expected <= set(list_schemes())


@pytest.mark.parametrize("name", list_schemes())
def test_a_scheme_declares_what_cards_and_docs_need(name):
    scheme = scheme_class(name)
    assert scheme.config_class.name == name
    for fact in (scheme.pretty_name, scheme.paper, scheme.formula, scheme.summary, scheme.__doc__):
        assert fact.strip()
    assert re.fullmatch(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|github\.com/\w+/\w+)", scheme.paper_url)
    assert scheme.supports_encoder or scheme.encoder_refusal
    assert scheme in list(schemes)

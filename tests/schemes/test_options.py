"""Scheme configs: every way to write one gives the same config, and what is wrong is refused by name."""

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_posswap.common.options import allowed_types, split_list
from hf_posswap.errors import PosSwapError, SchemeConfigError, UnknownNameError
from hf_posswap.schemes import (
    SchemeConfig,
    as_config,
    list_schemes,
    parse_scheme,
    scheme_class,
    scheme_text,
)
from hf_posswap.schemes.alibi import AlibiConfig
from hf_posswap.schemes.rope_config import RopeConfig
from hf_posswap.schemes.t5 import T5Config
from hf_posswap.schemes.texts import option_text
from tests.reference import model_facts

FIELDS = [
    (name, field.name) for name in list_schemes() for field in dataclasses.fields(scheme_class(name).config_class)
]


SCHEME_TEXTS = ("alibi", "t5:num_buckets=16", "kerple:power:seed=3")
"""Values of a string option without choices: it names another scheme."""


def annotation_of(scheme: str, field: str) -> tuple[Any, ...]:
    return allowed_types(typing.get_type_hints(scheme_class(scheme).config_class)[field])


def field_of(scheme: str, field: str) -> dataclasses.Field:
    return scheme_class(scheme).config_class.__dataclass_fields__[field]


def values_of(scheme: str, name: str) -> st.SearchStrategy[Any]:
    """Values that a field takes on its own; together they may contradict each other."""
    limits = field_of(scheme, name).metadata
    low = limits["minimum"] if limits["minimum"] is not None else limits["above"]
    choices = []
    for kind in annotation_of(scheme, name):
        if kind is type(None):
            choices.append(st.none())
        elif kind is bool:
            choices.append(st.booleans())
        elif kind is str:
            choices.append(st.sampled_from(limits["choices"] or SCHEME_TEXTS))
        elif kind is int:
            choices.append(st.integers(int(low or 0) + 1, 4096))
        else:
            low_float, high = float(low or 0), limits["maximum"] or 1e6
            numbers = st.floats(low_float, float(high), exclude_min=True)
            if kind is float:
                choices.append(numbers)
            else:
                item = typing.get_args(kind)[0]
                items = st.integers(0, 40) if item is int else numbers
                choices.append(st.lists(items, min_size=1, max_size=5, unique=True).map(tuple))
    return st.one_of(choices)


@st.composite
def configs(draw) -> SchemeConfig:
    """A random valid config of a random scheme: a few options set, the others at their defaults."""
    scheme = draw(st.sampled_from(list_schemes()))
    names = [field.name for field in dataclasses.fields(scheme_class(scheme).config_class)]
    chosen = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    try:
        return scheme_class(scheme).config_class(**{name: draw(values_of(scheme, name)) for name in chosen})
    except SchemeConfigError:
        assume(False)
        raise


@given(config=configs())
@settings(max_examples=200, deadline=None)
def test_json_round_trip(config):
    assert as_config(json.loads(json.dumps(config.to_dict()))) == config


@given(config=configs())
@settings(max_examples=200, deadline=None)
def test_text_round_trip(config):
    options = [f"{field.name}={option_text(getattr(config, field.name))}" for field in dataclasses.fields(config)]
    assert parse_scheme(":".join([config.name, *options])) == config


@given(config=configs())
@settings(max_examples=200, deadline=None)
def test_the_shortest_text_means_the_same_in_a_model(config):
    try:
        resolved = config.resolve(model_facts())
    except PosSwapError:
        assume(False)
    text = scheme_text(resolved, model_facts())
    assert parse_scheme(text).resolve(model_facts()) == resolved
    assert text.startswith(config.name)


@pytest.mark.parametrize(
    "text",
    [
        *list_schemes(),
        "rope:yarn",
        "rope:yarn:factor=8",
        "rope:base=50000:partial_rotary_factor=0.5",
        "alibi:trainable=true:per_layer=true",
        "alibi:layers=0+2",
        "none:recalibration=0.5",
    ],
)
def test_the_shortest_text_names_only_what_was_chosen(text):
    assert scheme_text(parse_scheme(text).resolve(model_facts()), model_facts()) == text


@given(config=configs())
@settings(max_examples=50, deadline=None)
def test_a_config_is_taken_as_it_is(config):
    assert as_config(config) is config
    assert dataclasses.replace(config) == config
    assert hash(dataclasses.replace(config)) == hash(config)


@pytest.mark.parametrize("name", list_schemes())
def test_a_bare_name_gives_the_defaults(name):
    assert as_config(name) == as_config({"name": name}) == scheme_class(name).config_class()


def test_a_variant_is_the_schemes_main_option():
    assert parse_scheme("rope:yarn:factor=4") == RopeConfig(scaling="yarn", factor=4.0)
    assert parse_scheme("alibi:one-sided:layers=0+2") == AlibiConfig(form="one-sided", layers=(0, 2))


@given(scheme=st.sampled_from(list_schemes()), key=st.text("abcdefgh_", min_size=1))
@settings(max_examples=50, deadline=None)
def test_an_unknown_option_names_those_that_exist(scheme, key):
    names = scheme_class(scheme).config_class.option_names()
    assume(key not in names)
    for make in (lambda: as_config({"name": scheme, key: 1}), lambda: parse_scheme(f"{scheme}:{key}=1")):
        with pytest.raises(SchemeConfigError) as error:
            make()
        assert repr(key) in str(error.value)
        assert all(name in str(error.value) for name in names)


def test_a_misspelt_option_is_suggested():
    with pytest.raises(SchemeConfigError, match=r"'num_bucket'. Did you mean 'num_buckets'\?"):
        as_config({"name": "t5", "num_bucket": 32})


@pytest.mark.parametrize(("scheme", "field"), FIELDS)
def test_a_value_of_the_wrong_type_is_refused(scheme, field):
    wrong = {"a": 1}
    with pytest.raises(SchemeConfigError) as error:
        as_config({"name": scheme, field: wrong})
    for part in (scheme, repr(field), repr(wrong), "it must be", field_of(scheme, field).metadata["help"]):
        assert part in str(error.value)


@pytest.mark.parametrize("value", [True, "many", 1.5, [8], float("nan")])
def test_numbers_are_not_guessed(value):
    with pytest.raises(SchemeConfigError, match="t5 option 'num_buckets' is .*it must be an integer"):
        T5Config(num_buckets=value)


@pytest.mark.parametrize("value", [True, "many", [2.0], float("nan"), float("inf"), pytest.param(10**400, id="huge")])
def test_floats_are_finite_numbers(value):
    with pytest.raises(SchemeConfigError, match="rope option 'base' is .*it must be a finite number or None"):
        RopeConfig(base=value)


@pytest.mark.parametrize(("scheme", "field"), FIELDS)
def test_a_value_out_of_range_names_the_range(scheme, field):
    limits, kinds = field_of(scheme, field).metadata, annotation_of(scheme, field)
    bounds = {"minimum": (-1, "at least"), "above": (0, "greater than"), "maximum": (1, "at most")}
    for bound, (step, words) in bounds.items():
        if limits[bound] is None:
            continue
        value = limits[bound] + step
        is_list = any(typing.get_origin(kind) is tuple for kind in kinds)
        with pytest.raises(SchemeConfigError) as error:
            as_config({"name": scheme, field: [value] if is_list else value})
        for part in (scheme, repr(field), str(value), f"{words} {limits[bound]}"):
            assert part in str(error.value)


@pytest.mark.parametrize(("scheme", "field"), FIELDS)
def test_an_unknown_choice_names_the_choices(scheme, field):
    choices = field_of(scheme, field).metadata["choices"]
    if choices is None:
        if str in annotation_of(scheme, field):  # it names another scheme
            with pytest.raises(UnknownNameError, match="no-such-scheme"):
                as_config({"name": scheme, field: "no-such-scheme"})
        return
    with pytest.raises(SchemeConfigError) as error:
        as_config({"name": scheme, field: choices[0] + "x"})
    assert f"Did you mean {choices[0]!r}" in str(error.value)
    assert all(choice in str(error.value) for choice in choices)


@pytest.mark.parametrize("name", list_schemes())
@pytest.mark.parametrize(
    ("layers", "message"), [([0, 0], "names a layer twice"), ([], "is empty"), ([-1], "at least 0")]
)
def test_impossible_layers_are_refused(name, layers, message):
    with pytest.raises(SchemeConfigError, match=message):
        as_config({"name": name, "layers": layers})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rope:factor=four", "rope option 'factor' is 'four'.*a finite number or None"),
        ("rope:yarn:factor", "write options as option=value"),
        ("t5:64", "cannot read '64' in 't5:64'"),
        ("t5:num_buckets=8:num_buckets=16", "given twice"),
        ("t5:per_layer=yes", "must be true or false"),
        ("alibi:layers=0+x", "'layers' is '0\\+x'"),
        ("alibi:layers=", "'layers' is ''"),
    ],
)
def test_text_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(SchemeConfigError, match=message):
        parse_scheme(text)


@pytest.mark.parametrize("text", ["alibbi", "", ":yarn", "Alibi"])
def test_an_unknown_scheme_lists_the_schemes(text):
    with pytest.raises(UnknownNameError) as error:
        as_config(text)
    assert all(name in str(error.value) for name in list_schemes())


@pytest.mark.parametrize("value", [None, 3, {"alibi"}, AlibiConfig])
def test_what_is_no_scheme_is_refused(value):
    with pytest.raises(SchemeConfigError, match="it must be a scheme's name"):
        as_config(value)


@pytest.mark.parametrize("value", [{}, {"form": "causal"}, {"name": 3}])
def test_a_dict_needs_a_name(value):
    with pytest.raises(SchemeConfigError, match="has no 'name'.*Allowed names: alibi"):
        as_config(value)


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AlibiConfig().form = "causal"


COMPOSED = "none:layers=3+7,rope:linear:factor=4"


def test_commas_separate_the_schemes_of_a_composition() -> None:
    config = parse_scheme(COMPOSED)
    assert [part.name for part in config.parts] == ["none", "rope"]
    assert config.parts[0].layers == (3, 7)
    assert config == parse_scheme(f" [{COMPOSED}] ") == as_config(COMPOSED.split(",")) == as_config(list(config.parts))
    assert config == as_config(json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize("text", [COMPOSED, "alibi:layers=1,t5:layers=0+2", "t5:layers=5,alibi:layers=0"])
def test_the_text_of_a_composition_is_read_as_what_it_says(text: str) -> None:
    facts = model_facts(num_layers=8)
    config = parse_scheme(text).resolve(facts)
    assert parse_scheme(scheme_text(config, facts)).resolve(facts) == config
    assert len(scheme_text(config, facts)) <= len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alibi,t5", ["alibi", "t5"]),
        (" alibi , ,t5,", ["alibi", "t5"]),
        (f"alibi,[{COMPOSED}], t5:layers=0+1", ["alibi", COMPOSED, "t5:layers=0+1"]),
        (f"[{COMPOSED}]", [COMPOSED]),
        ("", []),
    ],
)
def test_lists_of_schemes_hold_compositions_in_brackets(text: str, expected: list[str]) -> None:
    assert split_list(text) == expected


@pytest.mark.parametrize("text", ["alibi,[t5", "alibi]", "[[alibi],t5]", "alibi[t5]", "[alibi]t5"])
def test_brackets_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(PosSwapError, match="brackets"):
        split_list(text)


@pytest.mark.parametrize("name", list_schemes())
def test_resolving_keeps_the_options_that_all_schemes_have(name: str) -> None:
    config = as_config({"name": name, "layers": [1], "window": 7, "log_n": True})
    resolved = config.resolve(model_facts())
    assert [getattr(resolved, field.name) for field in dataclasses.fields(SchemeConfig)] == [(1,), False, 7, True]

"""The positional schemes, one file each, found by their registration.

To add a scheme, add a file here: every module of this package is imported, and the registry feeds the command line,
the docs, the capability table and the test matrix.
"""

import dataclasses
import importlib
import pkgutil
import reprlib
from collections.abc import Sequence
from typing import Any

from hf_posswap.common.options import to_text
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import (
    ModelFacts,
    Scheme,
    SchemeConfig,
    SchemeLayer,
    ScoreInputs,
    option,
    register_scheme,
    schemes,
)
from hf_posswap.schemes.composition import CompositionConfig
from hf_posswap.schemes.support import check_supported, in_entry

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def list_schemes() -> list[str]:
    """Return the names of all positional schemes, sorted."""
    return schemes.names()


def scheme_class(name: str) -> type[Scheme]:
    """Return the scheme called `name`.

    Raises:
        UnknownNameError: there is no such scheme; the nearest name is suggested.
    """
    return schemes.get(name)


def parse_scheme(text: str) -> SchemeConfig:
    """Read a scheme written as `name[:variant][:option=value]…`, such as "rope:yarn:factor=4" or "t5".

    Lists are written with `+`: "alibi:layers=0+1+2". Commas separate the entries of a composition:
    "none:layers=3+7,rope". It may stand in brackets, as it has to in a list of schemes.

    Raises:
        UnknownNameError: no such scheme.
        SchemeConfigError: an unknown option, a bad value, or a variant of a scheme that has none.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return _composed([entry.strip() for entry in text.split(",")])


def _parse_entry(text: str) -> SchemeConfig:
    name, *parts = text.split(":")
    config_class = scheme_class(name).config_class
    options: dict[str, str] = {}
    for index, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if not equals:
            if index > 0 or config_class.variant_option is None:
                raise SchemeConfigError(
                    f"cannot read {part!r} in {text!r}: write options as option=value. "
                    f"Options of {name!r}: {', '.join(config_class.option_names())}."
                )
            key, value = config_class.variant_option, part
        if key in options:
            raise SchemeConfigError(f"option {key!r} is given twice in {text!r}.")
        options[key] = value
    return config_class.from_texts(options)


def scheme_text(config: SchemeConfig, facts: ModelFacts) -> str:
    """Return the shortest text for `config`: `parse_scheme`, then `resolve` with the same facts, returns `config`.

    Args:
        config: a resolved config.
        facts: the facts of the model that `config` was resolved for.
    """
    texts = [_entry_text(part, facts) for part in config.parts]
    if config.layers is None and len(texts) > 1:  # one entry need not name its layers: the one that names the most
        widest = max(config.parts, key=lambda part: len(part.layers or ()))
        rest = dataclasses.replace(widest, layers=None)
        texts[config.parts.index(widest)] = _entry_text(rest, facts)
    return ",".join(texts)


def _entry_text(config: SchemeConfig, facts: ModelFacts) -> str:
    kept = {name: getattr(config, name) for name in config.option_names()}
    for name in config.option_names():
        fewer = {other: value for other, value in kept.items() if other != name}
        try:
            resolved = type(config).from_options(fewer).resolve(facts)
        except SchemeConfigError:  # another option requires this one, so it cannot be dropped
            continue
        if resolved == config:
            kept = fewer
    variant = config.variant_option
    parts = [to_text(kept.pop(variant))] if variant in kept else []
    return ":".join([config.name, *parts, *(f"{name}={to_text(value)}" for name, value in kept.items())])


def as_config(pos_scheme: str | dict[str, Any] | SchemeConfig | Sequence[Any]) -> SchemeConfig:
    """Return the config for a user's `pos_scheme`.

    Args:
        pos_scheme: a name (or "name:variant:option=value"), a dict or a config; or a list of those, one for each
            scheme of a composition. A list of one is that scheme.

    Raises:
        SchemeConfigError: `pos_scheme` is of another type, a dict without "name", or an empty list.
        UnknownNameError: no such scheme.
    """
    if isinstance(pos_scheme, SchemeConfig):
        return pos_scheme
    if isinstance(pos_scheme, str):
        return parse_scheme(pos_scheme)
    if isinstance(pos_scheme, list | tuple):
        return _composed(pos_scheme)
    if isinstance(pos_scheme, dict):
        return _from_dict(pos_scheme)
    raise SchemeConfigError(
        f"pos_scheme is {pos_scheme!r} ({type(pos_scheme).__name__}); it must be a scheme's name, a dict with 'name' "
        "and options, a config object such as RopeConfig(), or a list of those, each with its layers."
    )


def _from_dict(pos_scheme: dict[str, Any]) -> SchemeConfig:
    options = dict(pos_scheme)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise SchemeConfigError(
            f"pos_scheme {reprlib.repr(pos_scheme)} has no 'name': write {{'name': 'alibi', …}}. "
            f"Allowed names: {', '.join(list_schemes())}."
        )
    entries = options.get("entries")
    if not isinstance(entries, list | tuple):
        return scheme_class(name).config_class.from_options(options)
    config = _composed(entries)
    if name != config.name or len(options) > 1:
        raise SchemeConfigError(
            f"a composition has the name of its entries, here {config.name!r}, and no options but 'entries'; found "
            f"{name!r} with {reprlib.repr(sorted(options))}."
        )
    return config


def _composed(entries: Sequence[Any]) -> SchemeConfig:
    """Return the config of a list of schemes, texts or whatever else `as_config` takes."""
    if not entries:
        raise SchemeConfigError("pos_scheme is an empty list: name a scheme, or several with the layers of each.")
    configs = []
    for number, entry in enumerate(entries):
        given = entry.get("name") if isinstance(entry, dict) else entry
        name = given.partition(":")[0] if isinstance(given, str) else type(entry).__name__
        with in_entry(number, name, entries):
            several = isinstance(entry, list | tuple | CompositionConfig)
            if several or (isinstance(entry, dict) and "entries" in entry):
                raise SchemeConfigError("an entry of a list of schemes is one scheme, not a list.")
            configs.append(_parse_entry(entry) if isinstance(entry, str) else as_config(entry))
    return configs[0] if len(configs) == 1 else CompositionConfig(entries=tuple(configs))


__all__ = [
    "CompositionConfig",
    "ModelFacts",
    "Scheme",
    "SchemeConfig",
    "SchemeLayer",
    "ScoreInputs",
    "as_config",
    "check_supported",
    "list_schemes",
    "option",
    "parse_scheme",
    "register_scheme",
    "scheme_class",
    "scheme_text",
    "schemes",
]

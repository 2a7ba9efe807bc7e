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
from hf_posswap.schemes.texts import entry_text, parse_entry

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

    Lists are written with `+`: "alibi:layers=0+1+2", and a scheme as an option's value in parentheses if it has options
    itself: "dape:over=(kerple:power)". Commas separate the entries of a composition:
    "none:layers=3+7,rope". It may stand in brackets, as it has to in a list of schemes.

    Raises:
        UnknownNameError: no such scheme.
        SchemeConfigError: an unknown option, a bad value, or a variant of a scheme that has none.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return _composed([entry.strip() for entry in text.split(",")])


def scheme_text(config: SchemeConfig, facts: ModelFacts) -> str:
    """Return the shortest text for `config`: `parse_scheme`, then `resolve` with the same facts, returns `config`.

    Args:
        config: a resolved config.
        facts: the facts of the model that `config` was resolved for.
    """
    texts = [entry_text(part, lambda read: read.resolve(facts)) for part in config.parts]
    if config.layers is None and len(texts) > 1:  # one entry need not name its layers: the one that names the most
        widest = max(config.parts, key=lambda part: len(part.layers or ()))
        rest = dataclasses.replace(widest, layers=None)
        texts[config.parts.index(widest)] = entry_text(rest, lambda read: read.resolve(facts))
    return ",".join(texts)


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
            configs.append(parse_entry(entry) if isinstance(entry, str) else as_config(entry))
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

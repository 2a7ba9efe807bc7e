"""The positional schemes, one file each, found by their registration.

To add a scheme, add a file here: every module of this package is imported, and the registry feeds the command line,
the docs, the capability table and the test matrix.
"""

import importlib
import pkgutil
from typing import Any

from hf_posswap.common.options import to_text
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import (
    ModelFacts,
    Scheme,
    SchemeConfig,
    SchemeLayer,
    check_supported,
    option,
    register_scheme,
    schemes,
)

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

    Lists are written with `+`: "alibi:layers=0+1+2".

    Raises:
        UnknownNameError: no such scheme.
        SchemeConfigError: an unknown option, a bad value, or a variant of a scheme that has none.
    """
    name, *parts = text.strip().split(":")
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


def as_config(pos_scheme: str | dict[str, Any] | SchemeConfig) -> SchemeConfig:
    """Return the config for a user's `pos_scheme`: a name (or "name:variant:option=value"), a dict or a config.

    Raises:
        SchemeConfigError: `pos_scheme` is of another type, or a dict without "name".
        UnknownNameError: no such scheme.
    """
    if isinstance(pos_scheme, SchemeConfig):
        return pos_scheme
    if isinstance(pos_scheme, str):
        return parse_scheme(pos_scheme)
    if isinstance(pos_scheme, dict):
        options = dict(pos_scheme)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise SchemeConfigError(
                f"pos_scheme {pos_scheme!r} has no 'name': write {{'name': 'alibi', …}}. "
                f"Allowed names: {', '.join(list_schemes())}."
            )
        return scheme_class(name).config_class.from_options(options)
    raise SchemeConfigError(
        f"pos_scheme is {pos_scheme!r} ({type(pos_scheme).__name__}); it must be a scheme's name, "
        "a dict with 'name' and options, or a config object such as RopeConfig()."
    )


__all__ = [
    "ModelFacts",
    "Scheme",
    "SchemeConfig",
    "SchemeLayer",
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

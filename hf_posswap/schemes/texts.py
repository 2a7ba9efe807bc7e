"""One scheme with its options as text: `name[:variant][:option=value]…`."""

import re
from collections.abc import Callable

from hf_posswap.common.options import to_text
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import SchemeConfig, schemes

SEPARATOR = re.compile(r":(?![^()]*\))")
"""A colon that is not in parentheses."""


def parse_entry(text: str) -> SchemeConfig:
    """Read one scheme; a value with colons is in parentheses, as in "dape:over=(kerple:power)".

    Raises:
        UnknownNameError: no such scheme.
        SchemeConfigError: an unknown option, a bad value, or a variant of a scheme that has none.
    """
    name, *parts = SEPARATOR.split(text)
    config_class = schemes.get(name).config_class
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
        options[key] = value[1:-1] if value.startswith("(") and value.endswith(")") else value
    return config_class.from_texts(options)


def entry_text(config: SchemeConfig, read: Callable[[SchemeConfig], SchemeConfig] = lambda config: config) -> str:
    """Return the shortest text from which `parse_entry` and then `read` make `config`.

    Args:
        config: options of one scheme.
        read: what is done with a config that was parsed, such as `resolve`. By default nothing.
    """
    kept = {name: getattr(config, name) for name in config.option_names()}
    for name in config.option_names():
        fewer = {other: value for other, value in kept.items() if other != name}
        try:
            found = read(type(config).from_options(fewer))
        except SchemeConfigError:  # another option requires this one, so it cannot be dropped
            continue
        if found == config:
            kept = fewer
    variant = config.variant_option
    parts = [to_text(kept.pop(variant))] if variant in kept else []
    return ":".join([config.name, *parts, *(f"{name}={option_text(value)}" for name, value in kept.items())])


def option_text(value: object) -> str:
    """Return the text of an option's value, in parentheses if it has colons."""
    text = to_text(value)
    return f"({text})" if ":" in text else text

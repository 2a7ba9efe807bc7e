"""Typed, validated options: one declaration defines the check, the help text, the command line and the text format.

Options are fields of frozen dataclasses: scheme configs, options of healing, settings of measurements.
"""

import dataclasses
import math
import re
import reprlib
import types
import typing
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from hf_posswap.common.registry import unknown_name_message
from hf_posswap.errors import PosSwapError

REQUIRED: Any = dataclasses.MISSING
"""The default of an option that must be given."""
LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = 3e38
"""Limits of integers and numbers; LARGEST_NUMBER fits into float32, in which schemes compute."""


@dataclasses.dataclass(frozen=True)
class Switch:
    """Command line switch of a number that is 0 by default.

    Attributes:
        help: effect of the switch.
        name: the switch, such as "--distill".
        number: the option for the number, such as "--distill-weight".
        default: the number if only the switch is given.
    """

    help: str
    name: str
    number: str
    default: float


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    group: str | None = None,
    switch: Switch | None = None,
    card: str | None = None,
    flag: str | None = None,
    metavar: str | None = None,
    repeated: bool = False,
) -> Any:
    """Declare one field of a dataclass of options.

    Args:
        default: the field's default value, or `REQUIRED`.
        help: one sentence for docs and error messages.
        choices: the allowed strings, if there are few; not needed for a Literal type.
        minimum: the smallest allowed number.
        above: a number that the value must exceed.
        maximum: the largest allowed number.
        group: heading under which help lists the option.
        switch: for a number that is 0 unless it is switched on.
        card: what a model card calls it, for options that a card tells.
        flag: its name on the command line. None: the field's name, as "--batch-size".
        metavar: what help shows in the place of a value, such as "FILE". None: the choices, or the type.
        repeated: on the command line a list is written by repeating the option, not with commas.
    """
    limits = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum, "group": group}
    shown = {"help": help, "switch": switch, "card": card, "flag": flag, "metavar": metavar, "repeated": repeated}
    return dataclasses.field(default=default, metadata=shown | limits)


def declared(options: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass that `option` declared."""
    return [field for field in dataclasses.fields(options) if "help" in field.metadata]


def allowed_types(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union annotation, or the annotation itself."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def describe_type(annotation: Any) -> str:
    """Name an annotation as a user would: "a number or None"."""
    words: dict[Any, str] = {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "a string",
        type(None): "None",
    }
    words |= {Path: "a path", tuple[str, ...]: "a list of strings"}
    words |= {kind: "a string" for kind in allowed_types(annotation) if typing.get_origin(kind) is Literal}
    return " or ".join(words.get(kind, "a list of numbers") for kind in allowed_types(annotation))


def coerce(value: Any, annotation: Any) -> Any:
    """Return `value` as one of the annotated types, without loss (int to float, list to tuple).

    Raises:
        TypeError: no annotated type accepts the value.
    """
    for kind in allowed_types(annotation):
        if kind is type(None) and value is None:
            return None
        if isinstance(value, bool):  # a bool is an int too
            if kind is bool:
                return value
            continue
        if (kind is str or typing.get_origin(kind) is Literal) and isinstance(value, str):
            return value
        if kind is Path and isinstance(value, str | Path):
            return Path(value)
        if kind is int and isinstance(value, Integral):
            return int(value)
        if kind is float and isinstance(value, Real) and math.isfinite(value):
            return float(value)
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(coerce(item, typing.get_args(kind)[0]) for item in value)
    raise TypeError


def from_text(text: str, annotation: Any) -> Any:
    """Parse the text of an option; items of lists are separated by `+` ("0+1+2").

    Raises:
        TypeError: the text matches none of the annotated types.
    """
    kinds = allowed_types(annotation)
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    for kind in kinds:
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind is str:
            return text
        if typing.get_origin(kind) is tuple:
            return tuple(from_text(item, typing.get_args(kind)[0]) for item in text.split("+"))
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    raise TypeError


def to_text(value: Any) -> str:
    """Return an option's value as text that `from_text` can parse."""
    if isinstance(value, tuple):
        return "+".join(to_text(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


_TYPES: dict[type, dict[str, Any]] = {}


def option_types(options: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name, from a cache, because typing evaluates annotations slowly."""
    if options not in _TYPES:
        _TYPES[options] = typing.get_type_hints(options)
    return _TYPES[options]


def choices_of(field: dataclasses.Field[Any], annotation: Any) -> tuple[str, ...] | None:
    """Return the strings that an option accepts; None if they are not limited to a few."""
    named = [kind for kind in allowed_types(annotation) if typing.get_origin(kind) is Literal]
    return typing.get_args(named[0]) if named else field.metadata["choices"]


def check_options(options: Any, error: type[PosSwapError], label: str = "{}") -> None:
    """Check every field of a frozen dataclass and convert it to its type; called when an instance is constructed.

    Args:
        options: the instance; fields that `option` did not declare are left alone.
        error: what is raised.
        label: what an option is called in messages, with "{}" in the place of its name.

    Raises:
        error: a value has a wrong type, is an unknown choice or is out of range; the message names the field, the value
            and the allowed values.
    """
    kinds = option_types(type(options))
    for field in declared(type(options)):
        value = getattr(options, field.name)
        try:
            value = _checked(label.format(field.name), field, kinds[field.name], value)
        except ValueError as reason:
            raise error(str(reason)) from None
        object.__setattr__(options, field.name, value)


def _checked(label: str, field: dataclasses.Field[Any], annotation: Any, value: Any) -> Any:
    """Return `value` converted to the field's type, after checking its limits; raise ValueError if it is invalid."""
    try:
        value = coerce(value, annotation)
    except (TypeError, OverflowError):
        raise ValueError(
            f"{label} is {reprlib.repr(value)} ({type(value).__name__}); it must be {describe_type(annotation)}. "
            f"{field.metadata['help']}"
        ) from None
    choices = choices_of(field, annotation)
    for item in value if isinstance(value, tuple) else (value,):
        if choices is not None and item is not None and item not in choices:
            raise ValueError(unknown_name_message(f"value of {label}:", item, choices))
        if isinstance(item, int | float) and not isinstance(item, bool):
            _check_limits(label, field, item)
    return value


def _check_limits(label: str, field: dataclasses.Field[Any], number: float) -> None:
    limits = field.metadata
    largest = LARGEST_INTEGER if isinstance(number, int) else LARGEST_NUMBER
    if abs(number) > largest:
        raise ValueError(f"{label} is {number}; it must be within ±{largest}. {limits['help']}")
    bounds = []
    if limits["minimum"] is not None:
        bounds.append((number >= limits["minimum"], f"at least {limits['minimum']}"))
    if limits["above"] is not None:
        bounds.append((number > limits["above"], f"greater than {limits['above']}"))
    if limits["maximum"] is not None:
        bounds.append((number <= limits["maximum"], f"at most {limits['maximum']}"))
    if not all(holds for holds, _ in bounds):
        allowed = " and ".join(text for _, text in bounds)
        raise ValueError(f"{label} is {number}; it must be {allowed}. {limits['help']}")


def split_list(text: str) -> list[str]:
    """Return the items of a list written with commas, such as "alibi,[none:layers=0,rope]".

    An item that has commas itself stands in brackets, which are left out of what is returned.

    Raises:
        PosSwapError: brackets that are not closed, or not around a whole item.
    """
    found: list[str] = []
    after_comma = True
    for piece in re.findall(r"\s*\[[^\[\]]*\]\s*|[^,\[\]]+|,|[\[\]]", text):
        bare = piece.strip()
        if bare == ",":
            after_comma = True
        elif bare in ("[", "]") or (bare and not after_comma):
            raise PosSwapError(
                f"cannot read the list {text!r}: write an item that has commas in brackets, as in "
                "'alibi,[none:layers=0,rope],t5'."
            )
        elif bare:
            found.append(bare.strip("[]").strip())
            after_comma = False
    return found

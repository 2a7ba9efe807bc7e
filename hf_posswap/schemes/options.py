"""Typed, validated options of scheme configs: one declaration gives checking, help text and parsing from text."""

import dataclasses
import math
import reprlib
import types
import typing
from typing import Any

from hf_posswap.errors import SchemeConfigError
from hf_posswap.registry import unknown_name_message

LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = 3e38
"""What float32, in which schemes compute, can hold."""


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare one field of a scheme config.

    Args:
        default: the field's default value.
        help: one sentence for docs and error messages.
        choices: the allowed strings, if there are only so many.
        minimum: the smallest allowed number.
        above: a number the value must exceed.
        maximum: the largest allowed number.
    """
    limits = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum}
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def allowed_types(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union annotation, or the annotation itself."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def describe_type(annotation: Any) -> str:
    """Name an annotation as a user would: "a number or None"."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "None"}
    return " or ".join(words.get(kind, "a list of numbers") for kind in allowed_types(annotation))


def coerce(value: Any, annotation: Any) -> Any:
    """Return `value` as one of the annotated types, losslessly (int to float, list to tuple).

    Raises:
        TypeError: no annotated type takes the value.
    """
    for kind in allowed_types(annotation):
        if kind is type(None) and value is None:
            return None
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str):
            return value
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(coerce(item, typing.get_args(kind)[0]) for item in value)
    raise TypeError


def from_text(text: str, annotation: Any) -> Any:
    """Read an option written as text; lists are written with `+` between the items ("0+1+2").

    Raises:
        TypeError: the text fits none of the annotated types.
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
    """Return an option's value as `from_text` reads it."""
    if isinstance(value, tuple):
        return "+".join(to_text(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def checked_value(owner: str, field: dataclasses.Field[Any], annotation: Any, value: Any) -> Any:
    """Return `value` coerced to the field's type and within its limits.

    Raises:
        SchemeConfigError: wrong type, unknown choice or out of range; names value, allowed values and the field.
    """
    label = f"{owner} option {field.name!r}"
    try:
        value = coerce(value, annotation)
    except (TypeError, OverflowError):
        raise SchemeConfigError(
            f"{label} is {reprlib.repr(value)} ({type(value).__name__}); it must be {describe_type(annotation)}. "
            f"{field.metadata['help']}"
        ) from None
    choices = field.metadata["choices"]
    if choices is not None and value is not None and value not in choices:
        raise SchemeConfigError(unknown_name_message(f"value of {label}:", value, choices))
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_limits(label, field, number)
    return value


def _check_limits(label: str, field: dataclasses.Field[Any], number: float) -> None:
    limits = field.metadata
    largest = LARGEST_INTEGER if isinstance(number, int) else LARGEST_NUMBER
    if abs(number) > largest:
        raise SchemeConfigError(f"{label} is beyond ±{largest}, which nothing here can hold. {limits['help']}")
    bounds = []
    if limits["minimum"] is not None:
        bounds.append((number >= limits["minimum"], f"at least {limits['minimum']}"))
    if limits["above"] is not None:
        bounds.append((number > limits["above"], f"greater than {limits['above']}"))
    if limits["maximum"] is not None:
        bounds.append((number <= limits["maximum"], f"at most {limits['maximum']}"))
    if not all(holds for holds, _ in bounds):
        allowed = " and ".join(text for _, text in bounds)
        raise SchemeConfigError(f"{label} is {number}; it must be {allowed}. {limits['help']}")

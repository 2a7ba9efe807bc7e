"""Generates options of commands from dataclasses, whose fields define type, default, help and limits."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from hf_posswap.common.options import allowed_types, choices_of, option_types, to_text
from hf_posswap.errors import PosSwapError

Command = Callable[..., None]


def takes(
    options: type,
    parameter: str,
    *,
    names: Mapping[str, str] | None = None,
    help: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
    group: str | None = None,
) -> Callable[[Command], Command]:
    """Replace one parameter of a command by an option for each field of a dataclass of options.

    The command gets, in that parameter, a dict of keyword arguments for the dataclass, with only the options that the
    user gave. The dataclass checks the values.

    Args:
        options: the dataclass, with fields declared by `hf_posswap.common.options.option`.
        parameter: name of the command's parameter that gets the dict.
        names: names of options that differ from the name of their field, by field.
        help: help texts that differ in this command, by field.
        defaults: values that this command uses instead of the dataclass's defaults, by field; shown in the help.
        only: the fields that get an option; None: all.
        group: heading of all these options in the help; None: the group of each field.
    """
    names, help, defaults = names or {}, help or {}, defaults or {}
    kinds = option_types(options)
    offered = [field for field in dataclasses.fields(options) if only is None or field.name in set(only)]
    made: list[inspect.Parameter] = []
    for field in offered:
        default = defaults.get(field.name, field.default)
        made += _parameters(field, kinds[field.name], default, names.get(field.name), help.get(field.name), group)

    def generate(command: Command) -> Command:
        @functools.wraps(command)
        def generated(**given: Any) -> None:
            # Commands call each other too, with some of the options.
            typed = {one.name: given.pop(one.name, one.default) for one in made}
            command(**given, **{parameter: _values(offered, typed)})

        written = inspect.signature(command, eval_str=True)
        signature = []
        for one in written.parameters.values():
            signature += made if one.name == parameter else [one.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        # typer reads the parameters from the signature, and their types from the annotations.
        generated.__signature__ = written.replace(parameters=signature)  # type: ignore[attr-defined]  # inspect reads it
        generated.__annotations__ = {one.name: one.annotation for one in signature}
        return generated

    return generate


def _parameters(
    field: dataclasses.Field[Any], kind: Any, default: Any, name: str | None, help: str | None, group: str | None
) -> list[inspect.Parameter]:
    """Return the option of a field; for a number with a switch, both the switch and the number."""
    panel: str | None = group or field.metadata["group"]
    text, switch = help or field.metadata["help"], field.metadata["switch"]
    if switch is not None and name is None:
        how_much = typer.Option(switch.number, help=f"{text} Default: {switch.default:g}.", rich_help_panel=panel)
        return [
            _parameter(field.name, bool, typer.Option(switch.name, help=switch.help, rich_help_panel=panel), False),
            _parameter(_number(field), float | None, how_much, None),
        ]
    base = next(one for one in allowed_types(kind) if one is not type(None))
    choices = choices_of(field, kind)
    flag = name or f"--{field.name.replace('_', '-')}"
    if base is bool and default is not False:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    # Only the help shows the default: typer passes None for options that were not given, so commands can detect them.
    if default is not None and base is not bool:
        text = f"{text} Default: {to_text(default)}."
    metavar = "|".join(choices) if choices else None
    return [
        _parameter(
            field.name,
            (str if choices else base) | None,
            typer.Option(flag, help=text, metavar=metavar, rich_help_panel=panel),
            None,
        )
    ]


def _parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _number(field: dataclasses.Field[Any]) -> str:
    return f"{field.name}_number"


def _values(fields: Iterable[dataclasses.Field[Any]], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the options that the user gave, by field.

    Raises:
        PosSwapError: a number was given without its switch.
    """
    values = {}
    for field in fields:
        value, switch = typed[field.name], field.metadata["switch"]
        if _number(field) not in typed:
            if value is not None:
                values[field.name] = value
            continue
        number = typed[_number(field)]
        if number is not None and not value:
            raise PosSwapError(
                f"{switch.number} {number:g} says how much of {switch.name} there is: give {switch.name} too, or leave "
                "it out."
            )
        if value:
            values[field.name] = switch.default if number is None else number
    return values

"""Generates the options of commands from the fields of dataclasses, which define type, default, help and limits."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from hf_posswap.common.options import (
    REQUIRED,
    allowed_types,
    choices_of,
    declared,
    option_types,
    split_list,
    to_text,
)
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
    arguments: Iterable[str] = (),
    group: str | None = None,
) -> Callable[[Command], Command]:
    """Return a decorator that replaces one parameter of a command with options, one for each field of a dataclass.

    The command gets, in that parameter, a dict of keyword arguments for the dataclass. The dict contains only the
    options that the user gave. The dataclass checks the values. Python code passes an option by its name on the command
    line, with `_` for `-`: `compare(train_file=["a.txt"])`.

    Args:
        options: the dataclass, with fields declared by `hf_posswap.common.options.option`.
        parameter: name of the command's parameter that gets the dict.
        names: names of options that differ in this command, by field.
        help: help texts that differ in this command, by field.
        defaults: values that this command uses instead of the dataclass's defaults, by field; the help shows them.
            `REQUIRED` makes the option required.
        only: names of the fields that get an option; None: all fields.
        arguments: names of the fields that are positional arguments instead of options.
        group: heading of all these options in the help; None: each option has the heading of its field.
    """
    names, help, defaults, arguments = names or {}, help or {}, defaults or {}, set(arguments)
    kinds = option_types(options)
    offered = [
        _Offered(
            field,
            kinds[field.name],
            defaults.get(field.name, field.default),
            names.get(field.name),
            help.get(field.name, field.metadata["help"]),
            group or field.metadata["group"],
            field.name in arguments,
        )
        for field in declared(options)
        if only is None or field.name in set(only)
    ]
    made = [parameter for one in offered for parameter in one.parameters()]

    def generate(command: Command) -> Command:
        @functools.wraps(command)
        def generated(**given: Any) -> None:
            # Commands also call each other with a part of the options, so an option may be missing.
            typed = {one.name: given.pop(one.name, None) for one in made}
            values = {one.field.name: one.value(typed) for one in offered}
            command(**given, **{parameter: {name: value for name, value in values.items() if value is not None}})

        written = inspect.signature(command, eval_str=True)
        signature = []
        for one in written.parameters.values():
            signature += made if one.name == parameter else [one.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        # typer reads the parameters from the signature, and their types from the annotations.
        generated.__signature__ = written.replace(parameters=signature)  # type: ignore[attr-defined]  # inspect reads it
        generated.__annotations__ = {one.name: one.annotation for one in signature}
        return generated

    return generate


@dataclasses.dataclass(frozen=True)
class _Offered:
    """The form of a field in a command: an argument, an option or, for a number with a switch, two options."""

    field: dataclasses.Field[Any]
    kind: Any
    default: Any
    name: str | None
    help: str
    panel: str | None
    argument: bool

    @property
    def switch(self) -> Any:
        """The field's switch, or None. An option that the command renames takes the number and has no switch."""
        return self.field.metadata["switch"] if self.name is None else None

    @property
    def flag(self) -> str:
        return self.name or self.field.metadata["flag"] or f"--{self.field.name.replace('_', '-')}"

    @property
    def base(self) -> Any:
        """The type of a value, without None."""
        return next(one for one in allowed_types(self.kind) if one is not type(None))

    def parameters(self) -> list[inspect.Parameter]:
        """Return the parameters for the command's signature, which typer reads."""
        if self.switch is not None:
            how_much = self._option(self.switch.number, f"{self.help} Default: {self.switch.default:g}.")
            on = self._option(self.switch.name, self.switch.help)
            return [
                _parameter(self.field.name, bool, on, False),
                _parameter(_name(self.switch.number), float | None, how_much, None),
            ]
        choices = choices_of(self.field, self.kind)
        is_list = typing.get_origin(self.base) is tuple
        kind: Any = str if choices or is_list else self.base
        if self.field.metadata["repeated"]:
            kind = list[str]
        flag, text = self.flag, self.help
        if self.base is bool and self.default is not False:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        # The default is only in the help text: typer passes None for an option that the user did not give.
        if self.default not in (None, REQUIRED, ()) and self.base is not bool:
            default = ",".join(map(to_text, self.default)) if is_list else to_text(self.default)
            text = f"{text} Default: {default}."
        metavar = self.field.metadata["metavar"] or ("|".join(choices) if choices else None)
        required = self.default is REQUIRED
        made = (
            typer.Argument(help=escape(text), metavar=metavar) if self.argument else self._option(flag, text, metavar)
        )
        return [
            _parameter(
                _name(self.flag), kind if required else kind | None, made, inspect.Parameter.empty if required else None
            )
        ]

    def value(self, typed: Mapping[str, Any]) -> Any:
        """Return the field's value, given the values of all parameters; None if the user gave no value.

        Raises:
            PosSwapError: a number was given without its switch.
            typer.BadParameter: an item of a list is not a number.
        """
        if self.switch is None:
            value = typed[_name(self.flag)]
            if typing.get_origin(self.base) is not tuple or value is None:
                return value
            return self._items(value) if isinstance(value, str) else tuple(value) or None
        on, number = typed[self.field.name], typed[_name(self.switch.number)]
        if number is not None and not on:
            raise PosSwapError(
                f"{self.switch.number} {number:g} sets the amount for {self.switch.name}: give "
                f"{self.switch.name} too, or leave it out."
            )
        return None if not on else self.switch.default if number is None else number

    def _items(self, text: str) -> tuple[Any, ...]:
        """Return the items of a list written with commas."""
        kind = typing.get_args(self.base)[0]
        try:
            return tuple(kind(item) for item in split_list(text))
        except ValueError as error:
            what, example = ("numbers of tokens", "256,512,1024") if kind is int else ("numbers", "0,0.5,1")
            raise typer.BadParameter(
                f"{text!r} is no list of {what}. Write it as {example}.", param_hint=self.flag
            ) from error

    def _option(self, flag: str, help: str, metavar: str | None = None) -> Any:
        return typer.Option(flag, help=escape(help), metavar=metavar, rich_help_panel=self.panel)


def _parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _name(flag: str) -> str:
    """Return the name of the parameter for an option, such as "train_file" for "--train-file"."""
    return flag.removeprefix("--").replace("-", "_")

"""Options of commands and their checks come from the dataclasses that hold them."""

import dataclasses
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from hf_posswap.commands.generated import takes
from hf_posswap.common.options import choices_of, option_types
from hf_posswap.training.options import HealingOptions
from tests.documents.blocks import ROOT


def typed(*arguments: str, **how: Any) -> tuple[dict[str, Any], str]:
    """What a command gets of its options, and what it printed."""
    found: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @takes(HealingOptions, "options", **how)
    def command(*, name: Annotated[str, typer.Option()] = "", options: dict[str, Any]) -> None:
        found.update(options)

    result = CliRunner().invoke(app, list(arguments), terminal_width=200)
    return found, result.output + str(result.exception or "")


def example(field: dataclasses.Field[Any]) -> Any:
    """A value of an option other than its default."""
    kind = option_types(HealingOptions)[field.name]
    choices = choices_of(field, kind)
    if choices:
        return next(choice for choice in choices if choice != field.default)
    return True if kind in (bool, bool | None) else 64 if kind in (int, int | None) else 0.25


@pytest.mark.parametrize("field", dataclasses.fields(HealingOptions), ids=lambda field: field.name)
def test_every_option_is_typed_checked_and_explained(field: dataclasses.Field[Any]) -> None:
    value, switch = example(field), field.metadata["switch"]
    flag = f"--{field.name.replace('_', '-')}"
    words = [flag] if value is True else [flag, str(value)] if switch is None else [switch.name, switch.number, "0.25"]
    found, output = typed(*words)
    assert found == {field.name: value}, output
    budget = {} if field.name in ("tokens", "steps") else {"steps": 1}
    assert getattr(HealingOptions(**found, **budget), field.name) == value
    help = " ".join(typed("--help")[1].replace("│", " ").split())
    for sentence in (field.metadata["help"], field.metadata["group"]):
        assert sentence in help


def test_what_is_not_typed_is_left_to_the_dataclass() -> None:
    assert typed() == ({}, "")
    assert typed("--ramp")[0] == {"ramp": 0.5}
    assert typed("--no-packing")[0] == {"packing": False}
    assert "--ramp-share 0.2 says how much of --ramp there is" in typed("--ramp-share", "0.2")[1]


def test_a_command_may_rename_leave_out_and_have_defaults_of_its_own() -> None:
    how = {"only": ("length", "distill"), "names": {"length": "--heal-length", "distill": "--weight"}}
    assert typed("--heal-length", "64", "--weight", "0.5", **how)[0] == {"length": 64, "distill": 0.5}
    assert "No such option" in typed("--steps", "3", **how)[1]
    help = typed("--help", defaults={"batch_size": 24}, group="Elsewhere", **how)[1]
    assert "Elsewhere" in help
    assert "How to heal" not in help
    assert "Default: 24." in " ".join(typed("--help", defaults={"batch_size": 24})[1].replace("│", " ").split())


def test_a_command_is_called_from_python_with_some_of_its_options() -> None:
    found = []

    @takes(HealingOptions, "options")
    def command(*, name: str, options: dict[str, Any], seeds: int = 1) -> None:
        found.append((name, options, seeds))

    command(name="a", batch_size=8)
    command(name="b", distill=True, distill_number=0.5, seeds=2)
    assert found == [("a", {"batch_size": 8}, 1), ("b", {"distill": 0.5}, 2)]


def test_no_option_of_healing_is_spelled_out_in_a_command() -> None:
    generated = {field.name for field in dataclasses.fields(HealingOptions)} - {"tokens", "length", "seed"}
    for path in sorted((ROOT / "hf_posswap" / "commands").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        spelled = [name for name in generated if f"\n    {name}: Annotated" in text]
        assert spelled == (["precision"] if path.name == "calibrate.py" else []), path

"""Options of commands and their checks come from the dataclasses that hold them."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import hf_posswap
from hf_posswap import commands
from hf_posswap.commands.generated import takes
from hf_posswap.common.options import REQUIRED, allowed_types, check_options, choices_of, declared, option, option_types
from hf_posswap.errors import PosSwapError
from hf_posswap.loading.settings import SCHEME_HELP, SCHEMES_HELP
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
    lists = [one for one in allowed_types(kind) if typing.get_origin(one) is tuple]
    if lists:
        return (64, 32) if typing.get_args(lists[0])[0] is int else ("labels=2", "hidden=3")
    choices = choices_of(field, kind)
    if choices:
        return next(choice for choice in choices if choice != field.default)
    return True if kind in (bool, bool | None) else 64 if kind in (int, int | None) else 0.25


@pytest.mark.parametrize(("command", "words"), [("compare", SCHEMES_HELP), ("swap", SCHEME_HELP)])
def test_help_is_printed_in_full_with_its_brackets(command: str, words: str) -> None:
    output = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(commands.app, [command, "--help"]).output
    assert "".join(words.split()) in "".join(output.replace("│", " ").split())


@pytest.mark.parametrize("field", dataclasses.fields(HealingOptions), ids=lambda field: field.name)
def test_every_option_is_typed_checked_and_explained(field: dataclasses.Field[Any]) -> None:
    value, switch = example(field), field.metadata["switch"]
    flag = f"--{field.name.replace('_', '-')}"
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    words = [flag] if value is True else [flag, text] if switch is None else [switch.name, switch.number, "0.25"]
    found, output = typed(*words)
    assert found == {field.name: value}, output
    needed = {} if field.name in ("tokens", "steps") else {"steps": 1}
    if field.name == "target_length":
        needed["positions"] = "skipped"
    assert getattr(HealingOptions(**found, **needed), field.name) == value
    help = " ".join(typed("--help")[1].replace("│", " ").split())
    for sentence in (field.metadata["help"], field.metadata["group"]):
        assert sentence in help


def test_what_is_not_typed_is_left_to_the_dataclass() -> None:
    assert typed() == ({}, "")
    assert typed("--ramp")[0] == {"ramp": 0.5}
    assert typed("--no-packing")[0] == {"packing": False}
    assert "--ramp-share 0.2 sets the amount for --ramp" in typed("--ramp-share", "0.2")[1]


def test_a_command_may_rename_leave_out_and_have_defaults_of_its_own() -> None:
    how = {"only": ("length", "distill"), "names": {"length": "--heal-length", "distill": "--weight"}}
    assert typed("--heal-length", "64", "--weight", "0.5", **how)[0] == {"length": (64,), "distill": 0.5}
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
    command(name="b", distill=True, distill_weight=0.5, seeds=2)
    assert found == [("a", {"batch_size": 8}, 1), ("b", {"distill": 0.5}, 2)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Options of every type that the command line takes."""

    name: str = option(REQUIRED, "Whose it is.", metavar="NAME")
    sizes: tuple[int, ...] = option((1, 2), "How large.", minimum=1, metavar="N,N,…")
    shares: tuple[float, ...] = option((), "How much.")
    kinds: tuple[str, ...] = option((), "What.", choices=("red", "blue"), metavar="K,K,…")
    files: tuple[str, ...] = option((), "Where.", flag="--file", repeated=True)
    folder: Path | None = option(None, "Elsewhere.")
    quick: bool = option(True, "Soon.")
    held: object = None

    def __post_init__(self) -> None:
        check_options(self, PosSwapError)


def example_of(*arguments: str) -> Example:
    found: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @takes(Example, "given", arguments=("name",))
    def command(*, given: dict[str, Any]) -> None:
        found.update(given)

    result = CliRunner().invoke(app, list(arguments))
    if result.exit_code:
        raise PosSwapError(result.output)
    return Example(**found)


def test_lists_paths_and_arguments_are_read_from_the_command_line() -> None:
    assert example_of("a") == Example(name="a")
    words = [
        "a",
        "--sizes",
        "3, 4",
        "--shares",
        "0,0.5",
        "--kinds",
        "blue",
        "--file",
        "x,y",
        "--file",
        "z",
        "--no-quick",
    ]
    assert example_of(*words, "--folder", "there") == Example(
        name="a",
        sizes=(3, 4),
        shares=(0.0, 0.5),
        kinds=("blue",),
        files=("x,y", "z"),
        folder=Path("there"),
        quick=False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'NAME'"),
        (["a", "--sizes", "3,many"], "'3,many' is no list of numbers of tokens. Write it as 256,512,1024."),
        (["a", "--shares", "deep"], "'deep' is no list of numbers. Write it as 0,0.5,1."),
        (["a", "--sizes", "3,0"], "sizes is 0; it must be at least 1. How large."),
        (["a", "--kinds", "read"], "unknown value of kinds: 'read'. Did you mean 'red'? Allowed: blue, red."),
    ],
)
def test_wrong_lists_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(PosSwapError) as error:
        example_of(*words)
    assert message in " ".join(str(error.value).replace("│", " ").split())


def settings() -> set[type]:
    """Return every dataclass of options in the package but the schemes' configs, found by their declared fields."""
    found: set[type] = set()
    for module in pkgutil.walk_packages(hf_posswap.__path__, "hf_posswap."):
        if module.name.rpartition(".")[2] in ("settings", "options"):
            classes = inspect.getmembers(importlib.import_module(module.name), dataclasses.is_dataclass)
            found |= {kind for _, kind in classes if isinstance(kind, type) and declared(kind)}
    return found


def spelled_out(path: Path) -> Iterator[str]:
    """Yield the name of every option that a module of commands writes itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        annotation = node.annotation if isinstance(node, ast.arg) else node
        calls = [one for one in ast.walk(annotation or node) if isinstance(one, ast.Call)]
        options = [call for call in calls if ast.unparse(call.func) == "typer.Option"]
        if options and isinstance(node, ast.arg):
            yield node.arg
        for text in (text for call in options for text in call.args if isinstance(text, ast.Constant)):
            yield str(text.value).removeprefix("--").partition("/")[0].replace("-", "_")


def test_no_option_of_the_settings_is_spelled_out_in_a_command() -> None:
    names = {kind.__name__ for kind in settings()}
    assert {"HealingOptions", "EvaluationSettings", "ComparisonSettings", "Experiment", "BenchmarkSettings"} <= names
    fields = [field for kind in settings() for field in declared(kind)]
    known = {field.name for field in fields}
    known |= {field.metadata["flag"].removeprefix("--").replace("-", "_") for field in fields if field.metadata["flag"]}
    for path in sorted((ROOT / "hf_posswap" / "commands").glob("*.py")):
        assert known & set(spelled_out(path)) == set(), path


def test_the_test_of_spelled_out_options_finds_them(tmp_path: Path) -> None:
    source = tmp_path / "command.py"
    source.write_text(
        "Alias = Annotated[str, typer.Option('--text')]\n"
        "def command(seed: Annotated[int, typer.Option(help='A number.')] = 0, other: int = 1) -> None: ...\n"
    )
    assert set(spelled_out(source)) == {"text", "seed"}

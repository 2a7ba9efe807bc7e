"""The commands of `hf-posswap`. Each imports slow packages only when it runs, so that help is printed at once."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from hf_posswap.commands import (
    bench,
    bias,
    calibrate,
    catalogue,
    compare,
    demo,
    evaluate,
    export,
    finetune,
    models,
    push,
    report,
    search,
)
from hf_posswap.commands.console import interruptible
from hf_posswap.errors import PosSwapError
from hf_posswap.version import __version__


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Show hf_posswap's warnings without the location in the code, which is useful from Python only."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.startswith("hf_posswap."):
            typer.echo(f"hf-posswap: warning: {message}", err=True)
        else:
            elsewhere(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        elsewhere = warnings.showwarning
        warnings.showwarning = show
        yield


class _Group(TyperGroup):
    """Turns errors of hf_posswap into a message and exit code 2, and Ctrl-C into 130; other exceptions propagate."""

    def invoke(self, ctx: Any) -> Any:
        try:
            # Commands that can be resumed have printed how before this line.
            with interruptible(lambda: ""), _warnings_in_a_line():
                return super().invoke(ctx)
        except PosSwapError as error:
            typer.echo(f"hf-posswap: error: {error}", err=True)
            raise typer.Exit(code=2) from error


app = typer.Typer(
    name="hf-posswap",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hf_posswap {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Swap the positional mechanism of a pretrained Hugging Face model, and measure how far it then reads."""


app.command("demo")(demo.demo)
app.command("schemes")(catalogue.schemes)
app.command("matrix")(catalogue.matrix)
app.command("inspect")(models.inspect)
app.command("describe")(models.describe)
app.command("swap")(models.swap)
app.command("calibrate")(calibrate.calibrate)
app.command("bias")(bias.bias)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("search")(search.search)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("card")(push.card)
app.command("push")(push.push)
app.command("export")(export.export)

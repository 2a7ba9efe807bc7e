"""Functions that commands share: tables on stdout, progress on stderr, and common options."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from hf_posswap.loading.settings import MODEL_HELP

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table on stdout; the columns named in `right` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A pipe or file has no width; a fixed one keeps the columns of long tables from being cut.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(Text(title, style="bold"))
    console.print(table)


def note(message: str) -> None:
    """Print a line on stderr, so that it does not mix with results on stdout."""
    typer.echo(message, err=True)


def note_documents(what: str, tokens: Sequence[int], documents: int | None = None) -> None:
    """Print the number of documents and their lengths.

    Args:
        what: the use of the documents, such as "Measuring on".
        tokens: number of tokens of each document, or of a sample of the documents.
        documents: number of documents, if `tokens` is of a sample.
    """
    from hf_posswap.texts.files import DocumentLengths

    if tokens:
        note(f"{what} {DocumentLengths.of(tokens, documents)}.")


@contextlib.contextmanager
def interruptible(way_on: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, print how to resume, and exit with the code that shells use for it."""
    try:
        yield
    except KeyboardInterrupt as error:
        note(f"Interrupted. {way_on()}".rstrip())
        raise typer.Exit(INTERRUPTED) from error


def quiet_libraries() -> None:
    """Switch off the progress bars of other libraries, which would disturb ours. Call it before importing them."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()

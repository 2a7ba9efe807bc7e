"""Progress of healing on stderr: a bar with loss, speed and remaining time in a terminal, otherwise some lines."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hf_posswap.commands.console import note, note_documents
from hf_posswap.experiments.observer import Observer

LINES = 20
"""Number of lines that a run prints if there is no terminal."""


class LineObserver(Observer):
    """Prints a few lines, for logs and pipes."""

    def __init__(self) -> None:
        self.main = os.environ.get("RANK", "0") == "0"
        self.steps = 0

    def stage(self, name: str) -> None:
        note(f"{name} …")

    def documents(self, what: str, tokens: Sequence[int], number: int | None) -> None:
        note_documents(what, tokens, number)

    def started(self, steps: int, done: int) -> None:
        self.steps = steps
        if done:
            note(f"going on after step {done} of {steps}")

    def step(self, row: dict[str, Any]) -> None:
        number = row["step"]
        if number == self.steps or number % max(1, self.steps // LINES) == 0:
            note(f"step {number} of {self.steps}: {describe(row)}")


class BarObserver(LineObserver):
    """A bar for each healing run."""

    def __init__(self, progress: Any) -> None:
        super().__init__()
        self.progress, self.name = progress, ""
        self.task = progress.add_task("", total=None, what="")

    def stage(self, name: str) -> None:
        self.name = name
        self.progress.reset(self.task, total=None, description=name, what="")

    def started(self, steps: int, done: int) -> None:
        self.progress.reset(self.task, total=steps, completed=done, description=self.name, what="")

    def step(self, row: dict[str, Any]) -> None:
        self.progress.update(self.task, completed=row["step"], what=describe(row))


def describe(row: dict[str, Any]) -> str:
    """Return a step's row in words."""
    what = "loss of attention" if row.get("stage") == "attention" else "loss"
    return f"{what} {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s"


@contextlib.contextmanager
def healing_progress() -> Iterator[LineObserver]:
    """Yield an observer that shows progress on stderr."""
    if not sys.stderr.isatty() or not LineObserver().main:
        yield LineObserver()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[what]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield BarObserver(progress)

"""Progress of a comparison or a search on stderr."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hf_posswap.commands.console import note
from hf_posswap.commands.healing_progress import describe
from hf_posswap.experiments.cells import Cell, Outcome
from hf_posswap.experiments.observer import Observer

HEALING_LINES = 4
"""Number of lines that a run of healing prints if there is no terminal."""


class Planned(Protocol):
    """What observers need to know of an experiment."""

    @property
    def number_of_seeds(self) -> int:
        """Number of seeds; with several, the seed of a cell is told."""

    def work(self, cell: Cell) -> float:
        """Return the approximate work for a cell."""


class LineObserver(Observer):
    """Some lines for each cell, for logs and pipes."""

    def __init__(self, prepared: Planned) -> None:
        self.prepared = prepared
        self.cells: list[Cell] = []
        self.current: Cell | None = None
        self.told: Cell | None = None
        self.steps = 0
        self.begun = time.perf_counter()

    def planned(self, cells: Sequence[Cell], done: Sequence[Cell]) -> None:
        self.cells = list(cells)
        if done:
            note(f"going on after {len(done)} of {len(cells)} points that are measured already")

    def cell(self, cell: Cell) -> None:
        self.current = cell

    def stage(self, what: str) -> None:
        assert self.current is not None
        if self.current != self.told:  # cells that are refused at once never come here
            self.told, self.begun = self.current, time.perf_counter()
            note(f"{self.place(self.current)} …")

    def started(self, steps: int, done: int) -> None:
        self.steps = steps

    def step(self, row: dict[str, Any]) -> None:
        if row["step"] == self.steps or row["step"] % max(1, self.steps // HEALING_LINES) == 0:
            note(f"      step {row['step']} of {self.steps}: {describe(row)}")

    def finished(self, outcome: Outcome) -> None:
        if outcome.status == "measured":
            note(f"      done in {time.perf_counter() - self.begun:.0f} s")
        else:
            note(f"{self.place(outcome.cell)}: {outcome.status}: {outcome.reason}")

    def place(self, cell: Cell) -> str:
        """Return the text of a cell with its number among all cells, and its seed if there are several."""
        seed = f", seed {cell.seed}" if self.prepared.number_of_seeds > 1 else ""
        return f"({self.cells.index(cell) + 1}/{len(self.cells)}) {cell}{seed}"


class BarObserver(LineObserver):
    """A bar over the work of all cells, healing steps included; use it as a context manager."""

    def __init__(self, prepared: Planned) -> None:
        super().__init__(prepared)
        self.before, self.within = 0.0, 0.0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=120,
        )
        self.task = self.progress.add_task("", total=None, what="")

    def planned(self, cells: Sequence[Cell], done: Sequence[Cell]) -> None:
        self.cells = list(cells)
        self.before = sum(map(self.prepared.work, done))
        self.progress.update(self.task, total=sum(map(self.prepared.work, cells)), completed=self.before)

    def stage(self, what: str) -> None:
        assert self.current is not None
        self.progress.update(self.task, description=f"{self.place(self.current)}: {what}", what="")

    def worked(self, amount: float) -> None:
        # After an interruption, stages before a cell are repeated; their work is not counted.
        assert self.current is not None
        self.within = min(self.within + amount, self.prepared.work(self.current))
        self.progress.update(self.task, completed=self.before + self.within)

    def step(self, row: dict[str, Any]) -> None:
        self.progress.update(self.task, what=f"step {row['step']}/{self.steps}, {describe(row)}")

    def finished(self, outcome: Outcome) -> None:
        # Also counts lengths beyond the longest position, which are not read.
        self.before, self.within = self.before + self.prepared.work(outcome.cell), 0.0
        self.progress.update(self.task, completed=self.before, what="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()


@contextlib.contextmanager
def cell_progress(prepared: Planned) -> Iterator[LineObserver]:
    """Show progress on stderr: a bar on a terminal, otherwise some lines."""
    if not sys.stderr.isatty():
        yield LineObserver(prepared)
        return
    with BarObserver(prepared) as observer:
        yield observer

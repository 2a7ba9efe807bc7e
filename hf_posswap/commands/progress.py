"""Progress of a comparison on stderr."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hf_posswap.commands.console import note
from hf_posswap.comparison import Observer, Prepared


class LineObserver(Observer):
    """One line for each scheme, for logs and pipes."""

    def __init__(self, prepared: Prepared) -> None:
        self._schemes = prepared.to_measure
        self._started = time.perf_counter()

    def stage(self, scheme: str, stage: str) -> None:
        if stage == "loading":
            note(f"({self._schemes.index(scheme) + 1}/{len(self._schemes)}) {scheme} …")
            self._started = time.perf_counter()

    def scheme_done(self, scheme: str, rows: Sequence[dict[str, Any]]) -> None:
        if scheme in self._schemes:
            note(f"      {scheme} done in {time.perf_counter() - self._started:.0f} s")


class BarObserver(Observer):
    """A bar over all schemes that counts tokens read; use it as a context manager."""

    def __init__(self, prepared: Prepared) -> None:
        self._schemes = prepared.to_measure
        self._per_scheme = prepared.tokens_per_scheme
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=self._per_scheme * len(self._schemes))

    def stage(self, scheme: str, stage: str) -> None:
        number = self._schemes.index(scheme) + 1
        self._progress.update(self._task, description=f"({number}/{len(self._schemes)}) {scheme}: {stage}")

    def tokens(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def scheme_done(self, scheme: str, rows: Sequence[dict[str, Any]]) -> None:
        if scheme in self._schemes:
            # Lengths past the longest position are not read; the bar moves on over them.
            self._progress.update(self._task, completed=self._per_scheme * (self._schemes.index(scheme) + 1))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

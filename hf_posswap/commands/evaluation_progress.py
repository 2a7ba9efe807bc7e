"""Progress of an evaluation on stderr: a bar over all tokens in a terminal, otherwise a line for each part."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hf_posswap.commands.console import note
from hf_posswap.evaluation.measuring import Part
from hf_posswap.evaluation.run import EvaluationObserver


class LineObserver(EvaluationObserver):
    """A line for each part, for logs and pipes."""

    def __init__(self) -> None:
        self.parts: Sequence[Part] = ()
        self.began = 0.0

    def started(self, parts: Sequence[Part], finished: Sequence[Part]) -> None:
        self.parts = parts
        if finished:
            note(f"going on: {len(finished)} of {len(parts)} parts are measured already")

    def part(self, part: Part) -> None:
        self.began = time.perf_counter()

    def part_done(self, part: Part) -> None:
        number = self.parts.index(part) + 1
        note(f"({number}/{len(self.parts)}) {part.name}: {time.perf_counter() - self.began:.0f} s")


class BarObserver(EvaluationObserver):
    """A bar that counts the tokens of all parts."""

    def __init__(self, progress: Any) -> None:
        self.progress, self.done = progress, 0
        self.task = progress.add_task("loading", total=None)

    def started(self, parts: Sequence[Part], finished: Sequence[Part]) -> None:
        self.done = sum(part.tokens for part in finished)
        self.progress.update(self.task, total=sum(part.tokens for part in parts), completed=self.done)

    def part(self, part: Part) -> None:
        self.progress.update(self.task, description=part.name)

    def tokens(self, count: int) -> None:
        self.progress.advance(self.task, count)

    def part_done(self, part: Part) -> None:
        self.done += part.tokens  # also counts the tokens of a length that the model cannot read
        self.progress.update(self.task, completed=self.done)


@contextlib.contextmanager
def evaluation_progress(is_main: bool) -> Iterator[EvaluationObserver]:
    """Yield an observer that shows progress on stderr, in the main process."""
    if not sys.stderr.isatty() or not is_main:
        yield LineObserver()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield BarObserver(progress)

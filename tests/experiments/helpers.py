"""What the tests of comparisons share: reading results, and an observer that remembers."""

from collections.abc import Callable, Sequence
from typing import Any

from hf_posswap.experiments.cells import Cell, Outcome
from hf_posswap.experiments.observer import Observer
from hf_posswap.experiments.settings import ComparisonSettings

Make = Callable[..., ComparisonSettings]
"""Makes settings, with some of them changed."""
STEP = 2 * 16
"""Tokens of a step of healing in the tests of searches."""


def numbers(result: dict[str, Any]) -> list[object]:
    """Everything in the rows but how long they took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result["rows"]]


def statuses(result: dict[str, Any]) -> dict[tuple[str, str, int], str]:
    return {(cell["scheme"], cell["stage"], cell["seed"]): cell["status"] for cell in result["cells"]}


class Recorder(Observer):
    """Remembers what it is told, and can interrupt once so many cells are finished."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.interrupt_after = interrupt_after
        self.cells: list[Cell] = []
        self.already: list[Cell] = []
        self.activities: list[tuple[str, str, str]] = []
        self.work = 0.0
        self.steps: list[int] = []
        self.outcomes: list[Outcome] = []

    def planned(self, cells: Sequence[Cell], done: Sequence[Cell]) -> None:
        self.cells, self.already = list(cells), list(done)

    def cell(self, cell: Cell) -> None:
        self.current = cell

    def stage(self, what: str) -> None:
        self.activities.append((self.current.scheme, self.current.stage, what))

    def worked(self, amount: float) -> None:
        self.work += amount

    def step(self, row: dict[str, Any]) -> None:
        self.steps.append(row["step"])

    def finished(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if len(self.outcomes) == self.interrupt_after:
            raise KeyboardInterrupt

"""Callbacks that report the progress of a comparison."""

from collections.abc import Sequence
from typing import Any

from hf_posswap.comparison.cells import Cell, Outcome


class Observer:
    """Callbacks of `run`, which do nothing by default; override the ones you need."""

    def planned(self, cells: Sequence[Cell], done: Sequence[Cell]) -> None:
        """Called first, with all cells in the order of measuring, and the cells that an earlier run has measured."""

    def activity(self, cell: Cell, what: str) -> None:
        """Called when a step towards `cell` begins: loading, swapping, calibrating, healing or a protocol."""

    def worked(self, amount: float) -> None:
        """Called when part of a cell's work is done, with the amount in the unit of `Prepared.work`."""

    def healing_step(self, row: dict[str, Any], steps: int) -> None:
        """Called after each of the `steps` steps of healing, with its row of the history."""

    def finished(self, outcome: Outcome) -> None:
        """Called when a cell is measured, or known to have no numbers."""

"""How a comparison tells what it is doing."""

from collections.abc import Sequence
from typing import Any

from hf_posswap.comparison.cells import Cell, Outcome


class Observer:
    """Told what `run` is doing; does nothing. Override what is of interest."""

    def planned(self, cells: Sequence[Cell], done: Sequence[Cell]) -> None:
        """Called first, with all cells in the order of measuring, and those that an earlier run has measured."""

    def activity(self, cell: Cell, what: str) -> None:
        """Called when something begins on the way to `cell`: loading, swapping, calibrating, healing, a protocol."""

    def worked(self, amount: float) -> None:
        """Called when work is done on the way to the cell, in the unit of `Prepared.work`."""

    def healing_step(self, row: dict[str, Any], steps: int) -> None:
        """Called after each of the `steps` steps of healing, with its row of the history."""

    def finished(self, outcome: Outcome) -> None:
        """Called when a cell is measured, or known to have no numbers."""

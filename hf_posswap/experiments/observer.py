"""Callbacks that report the progress of an experiment."""

from collections.abc import Sequence

from hf_posswap.experiments.cells import Cell, Outcome
from hf_posswap.training.loop import HealingObserver


class Observer(HealingObserver):
    """Callbacks of an experiment. They do nothing by default; override the callbacks that you need.

    Only the main process calls them. The callbacks of `HealingObserver` report the steps of healing.
    """

    def documents(self, what: str, tokens: Sequence[int], number: int | None) -> None:
        """Called after documents are read, before any long computation.

        Args:
            what: the use of the documents, "Healing on" or "Measuring on".
            tokens: number of tokens of each document, or of a sample of the documents.
            number: number of documents; None: unknown.
        """

    def planned(self, cells: Sequence[Cell], done: Sequence[Cell]) -> None:
        """Called at the start of a comparison, with all cells in the order of measuring, and the cells already done."""

    def cell(self, cell: Cell) -> None:
        """Called by a comparison before it takes the model to the stage of `cell`."""

    def stage(self, what: str) -> None:
        """Called when a step begins: loading, calibrating, healing or measuring."""

    def worked(self, amount: float) -> None:
        """Called when part of the work is done, with the amount in the unit of `Prepared.work`."""

    def finished(self, outcome: Outcome) -> None:
        """Called by a comparison after a cell is measured, or when it is clear that the cell has no numbers."""

"""Callbacks that report the progress of an experiment."""

from collections.abc import Sequence

from hf_posswap.experiments.cells import Cell, Outcome
from hf_posswap.training.loop import HealingObserver


class Observer(HealingObserver):
    """Callbacks of an experiment, which do nothing by default; override the ones you need.

    Only the main process calls them. Those of `HealingObserver` report the steps of healing.
    """

    def documents(self, what: str, tokens: Sequence[int], number: int | None) -> None:
        """Called when documents were read, before any long computation.

        Args:
            what: the use of the documents, "Healing on" or "Measuring on".
            tokens: number of tokens of each document, or of a sample of the documents.
            number: number of documents; None: unknown.
        """

    def planned(self, cells: Sequence[Cell], done: Sequence[Cell]) -> None:
        """Called first by a comparison, with all cells in the order of measuring, and those measured before."""

    def cell(self, cell: Cell) -> None:
        """Called by a comparison when the work towards `cell` begins."""

    def stage(self, what: str) -> None:
        """Called when a step begins: loading, calibrating, healing or measuring."""

    def worked(self, amount: float) -> None:
        """Called when part of the work is done, with the amount in the unit of `Prepared.work`."""

    def finished(self, outcome: Outcome) -> None:
        """Called by a comparison when a cell is measured, or known to have no numbers."""

"""The record of an experiment, written to its folder after every cell, so that an interrupted run can resume."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from hf_posswap.experiments.cells import Cell, Outcome, in_order
from hf_posswap.experiments.preparation import Prepared
from hf_posswap.experiments.settings import GROWING
from hf_posswap.results.environment import collect_environment
from hf_posswap.results.files import OutputError
from hf_posswap.results.kinds import COMPARISON, Kind
from hf_posswap.results.parts import first_difference
from hf_posswap.results.reading import ResultFile, read_result, result_file
from hf_posswap.results.writing import make_result, write_result

_CELL = ("scheme", "stage", "seed")
DECIDING_PACKAGES = ("hf_posswap", "torch", "transformers")
"""Packages whose version changes the numbers."""
WAY_OUT = "Use the settings of that run to continue it, another --output-dir, or --overwrite to start anew."


class Record:
    """The results of all cells so far, of a comparison or, in a subclass, of another experiment.

    Args:
        prepared: the result of `prepare`.
        folder: the results folder, in which the JSON and CSV file are rewritten after every cell; None: nothing is
            written.

    Raises:
        OutputError: the folder contains an experiment with other settings, or one that cannot be read.
    """

    kind: ClassVar[Kind] = COMPARISON
    growing: ClassVar[tuple[str, ...]] = GROWING
    """Settings that a later run may extend."""

    def __init__(self, prepared: Prepared, folder: Path | None) -> None:
        self.prepared, self.folder = prepared, folder
        self.environment = collect_environment()
        self.outcomes: dict[Cell, Outcome] = {}
        if folder is None:
            return
        path = folder / f"{self.kind.file}.json"
        if path.exists():
            self._take_over(path)
        for unfinished in folder.glob(f".{self.kind.file}-*"):  # left by a run that was killed while writing
            unfinished.unlink(missing_ok=True)

    def __contains__(self, cell: Cell) -> bool:
        return cell in self.outcomes

    def start_of(self, scheme: str, seed: int) -> str | None:
        """Return the digest of a scheme's parameters after the swap with that seed; None if it was not swapped."""
        outcome = self.outcomes.get(Cell(scheme, "swapped", seed))
        return None if outcome is None else outcome.facts.get("start")

    def add(self, outcome: Outcome) -> None:
        """Add the result of a cell and write the record.

        Raises:
            OutputError: the record cannot be written; the files written before are intact.
        """
        self.outcomes[outcome.cell] = outcome
        self.write()

    def write(self) -> None:
        """Write the results so far.

        Raises:
            OutputError: see `add`.
        """
        if self.folder is None:
            return
        try:
            write_result(self.result(), self.folder)
        except OSError as error:
            raise OutputError(
                f"cannot write {str(self.folder / self.kind.file)!r}.json and .csv: {error}. What was written before "
                "is intact: make room, then run the same command again."
            ) from error

    def result(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        settings = self.prepared.settings
        known = self.known()
        return make_result(
            self.kind,
            [row for outcome in known for row in outcome.rows],
            model=settings.model,
            seed=settings.seed,
            settings=self.settings(),
            texts=[text.to_dict() for text in self.prepared.texts],
            environment=self.environment,
            train_length=self.prepared.train_length,
            training_texts=self.prepared.training_facts,
            complete=self.is_complete(),
            **self.facts(),
            cells=[_entry(outcome) for outcome in known],
        )

    def known(self) -> list[Outcome]:
        """Return the outcomes so far, in the order of the result."""
        return [self.outcomes[cell] for cell in in_order(self.prepared.settings) if cell in self.outcomes]

    def is_complete(self) -> bool:
        """Return whether every cell has its outcome."""
        return all(cell in self.outcomes for cell in in_order(self.prepared.settings))

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return self.prepared.settings.to_dict()

    def facts(self) -> dict[str, Any]:
        """Return further entries of the JSON file."""
        return {}

    def cell_of(self, row: Mapping[str, Any]) -> Cell:
        """Return the cell that a row belongs to."""
        return Cell(row["scheme"], row["stage"], row["seed"])

    def _take_over(self, path: Path) -> None:
        """Load the results of an earlier run from its JSON file.

        Raises:
            OutputError: the earlier run has other settings, or is of an earlier version of hf_posswap.
        """
        saved = read_result(path)
        if saved.kind != self.kind or not isinstance(saved.facts.get("cells"), list):
            raise OutputError(
                f"{str(path)!r} is of an earlier version of hf_posswap and cannot be gone on from. Give another "
                "--output-dir, or --overwrite to start anew."
            )
        self._require_same(path, saved)
        rows: dict[Cell, list[dict[str, Any]]] = {}
        for row in saved.rows:
            rows.setdefault(self.cell_of(row), []).append(row)
        for entry in saved.facts["cells"]:
            cell = Cell(*(entry[name] for name in _CELL))
            facts = {name: value for name, value in entry.items() if name not in (*_CELL, "status", "reason")}
            self.outcomes[cell] = Outcome(cell, entry["status"], entry["reason"], rows.get(cell, []), facts)
        self.environment = dict(saved.environment) if self.is_complete() else self.environment

    def _require_same(self, path: Path, saved: ResultFile) -> None:
        now = result_file(self.result(), str(path))
        difference = first_difference(self._identity(saved), self._identity(now))
        if difference is not None:
            name, before, after = difference
            raise OutputError(
                f"{str(path)!r} holds a {self.kind.name} with another {name}: {before!r} there, {after!r} now. "
                f"{WAY_OUT}"
            )
        for name in self.growing:
            before, after = saved.settings[name], now.settings[name]
            if _shrinks(before, after):
                raise OutputError(
                    f"{str(path)!r} holds a {self.kind.name} with more {name}: {before!r} there, {after!r} now. "
                    f"{WAY_OUT}"
                )

    def _identity(self, result: ResultFile) -> dict[str, Any]:
        """Return the parts of a result that determine its numbers."""
        versions = result.environment["versions"]
        return {
            "settings": {"documents": None}
            | {n: value for n, value in result.settings.items() if n not in self.growing},
            "texts": list(result.texts),
            "training_texts": result.facts["training_texts"],
            "versions": {name: versions.get(name) for name in DECIDING_PACKAGES},
        }


def remove_record(folder: Path, kind: Kind = COMPARISON) -> None:
    """Remove the files of an experiment from a folder."""
    for ending in ("csv", "json", "png"):
        (folder / f"{kind.file}.{ending}").unlink(missing_ok=True)


def _shrinks(before: Any, now: Any) -> bool:
    return not set(before) <= set(now) if isinstance(before, list) else now < before


def _entry(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome.cell) | {"status": outcome.status, "reason": outcome.reason} | outcome.facts

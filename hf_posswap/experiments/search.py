"""Runs a search: calibrates all candidates, heals them in rounds, and drops the worse half after each round."""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_posswap.auto import auto_class
from hf_posswap.calibration import calibration_refusal
from hf_posswap.errors import PosSwapError, SourceError
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.experiments.cells import Cell, Lane, Outcome
from hf_posswap.experiments.comparison import facts_of
from hf_posswap.experiments.course import Course
from hf_posswap.experiments.measuring import AUTO_CLASSES
from hf_posswap.experiments.observer import Observer
from hf_posswap.experiments.search_preparation import ONE_LAYER, PreparedSearch, round_of_stage
from hf_posswap.experiments.search_record import Models, SearchRecord
from hf_posswap.experiments.stages import Subject
from hf_posswap.results.files import OutputError
from hf_posswap.results.kinds import STOCK
from hf_posswap.sources import load_model
from hf_posswap.swapped.tokenizers import fit_tokenizer


def run_search(search: PreparedSearch, observer: Observer | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Search for the best scheme, and return the content of search.json.

    A candidate whose swap or healing is refused leaves the search, with the reason in its rows.

    Args:
        search: the result of `prepare_search`.
        observer: callbacks for progress; None: no progress is reported. Cells are planned part by part.
        folder: the results folder, with the models of the candidates that may still win and at the end the winner's.
            Cells that it already contains are not measured again. None: nothing is kept.

    Raises:
        EvaluationError: no candidate could be measured or healed.
        OutputError: the folder holds a search with other settings, or models of something else, or cannot be written
            to.
    """
    if folder is not None:
        return _Search(search, observer or Observer(), SearchRecord(search, folder), folder).run()
    with tempfile.TemporaryDirectory() as models:
        return _Search(search, observer or Observer(), SearchRecord(search, None), Path(models)).run()


class _Search:
    """The state of a running search."""

    def __init__(self, search: PreparedSearch, observer: Observer, record: SearchRecord, folder: Path) -> None:
        self.search, self.observer, self.record = search, observer, record
        self.models = Models(folder)
        if not record.outcomes:
            self.models.require_room()

    def run(self) -> dict[str, Any]:
        course = self.record.course
        self.models.keep(course.models())  # a run that was killed may have left others
        for cells in course.stages():
            missing = [cell for cell in cells if cell not in self.record]
            if missing:
                self.observer.planned(cells, [cell for cell in cells if cell in self.record])
            for cell in missing:
                self.observer.cell(cell)
                outcome = self._outcome(course, cell, len(cells))
                self.record.add(outcome)
                self.models.keep(course.models())
                self.observer.finished(outcome)
        winner = self.record.winner()
        if winner is None:
            raise EvaluationError(_failure(course, list(self.record.outcomes.values())))
        self.models.finish(winner, len(course.sizes()))
        self.record.write()
        return self.record.result()

    def _outcome(self, course: Course, cell: Cell, among: int) -> Outcome:
        """Take a model to a cell and measure it."""
        began, number = time.perf_counter(), round_of_stage(cell.stage)
        prepared = self.search.prepared
        try:
            subject, stage, facts = self._reached(course, cell, among)
            self.observer.stage("measuring")
            only = (course.old,) if cell.stage == ONE_LAYER else None
            measured = prepared.measure.rows(subject.model, self.observer.worked, only)
            rows = [dataclasses.asdict(row) for row in measured]
            missing = next((row["note"] for row in rows if row["loss"] is None), "")
            status, reason = ("refused", missing) if missing and cell.scheme != STOCK else ("measured", "")
        except (SourceError, OutputError):  # the error concerns all cells
            raise
        except PosSwapError as error:
            rows = [dataclasses.asdict(row) for row in prepared.measure.gaps(str(error))]
            status, reason, stage, facts = "refused", str(error), "healed" if number else "swapped", {}
        tokens = facts.get("healing", {}).get("tokens", 0)
        label = {
            "model": self.search.settings.model,
            "scheme": cell.scheme,
            "stage": stage,
            "seed": cell.seed,
            "round": 0 if cell.scheme == STOCK else number,
            "healing_tokens": tokens + (self.record.healed_on(cell.scheme, number - 1) if number else 0),
        }
        seconds = {"seconds": round(time.perf_counter() - began, 3)}
        return Outcome(cell, status, reason, [label | row for row in rows], facts | seconds)

    def _reached(self, course: Course, cell: Cell, among: int) -> tuple[Subject, str, dict[str, Any]]:
        """Return the model at a cell, the name of its stage, and facts about how it came there."""
        number = round_of_stage(cell.stage)
        plan = self.search.prepared.plan(Lane(cell.scheme, cell.seed, ()))
        if cell.scheme == STOCK:
            subject = Subject(plan, self.observer)
            subject.reach(STOCK)
            return subject, STOCK, {}
        if number:
            return self._healed(course, cell, number, among)
        subject = Subject(plan, self.observer)
        facts = facts_of(subject, subject.reach("swapped"))
        refusal = calibration_refusal(subject.model)
        if refusal is None:
            facts |= facts_of(subject, subject.reach("calibrated"))
        else:
            facts |= {"uncalibrated": refusal}
        if number is not None:
            self._save(subject.model, self.models.anew(cell.scheme, 0))
        return subject, str(subject.stage), facts

    def _healed(self, course: Course, cell: Cell, number: int, among: int) -> tuple[Subject, str, dict[str, Any]]:
        prepared = self.search.prepared
        before = self.models.known(cell.scheme, number - 1)
        head = auto_class(AUTO_CLASSES[prepared.measure.objective])
        plan = dataclasses.replace(
            prepared.plan(Lane(cell.scheme, cell.seed, ())),
            load=lambda: load_model(str(before), head).to(prepared.settings.device),
            scheme=None,  # the model is swapped already
            healing=self.search.healing(number, len(course.sizes()), among),
            folder=self.models.anew(cell.scheme, number),
        )
        subject = Subject(plan, self.observer)
        subject.reach("swapped")
        if number > 1:  # a healed model contains no stock model to learn from
            subject.teacher = prepared.load()
        return subject, "healed", facts_of(subject, subject.reach("healed"))

    def _save(self, model: Any, path: Path) -> None:
        try:
            model.save_pretrained(path)
            fit_tokenizer(self.search.prepared.tokenizer, model).save_pretrained(path)
        except OSError as error:
            raise OutputError(
                f"cannot write the model to {str(path)!r}: {error}. What was measured is kept: make room, then run the "
                "same command again."
            ) from error


def _failure(course: Course, outcomes: Sequence[Outcome]) -> str:
    reasons = dict.fromkeys(f"{outcome.cell}: {outcome.reason}" for outcome in outcomes if outcome.reason)
    listed = "\n".join(f"  {reason}" for reason in reasons)
    return f"the search ended after round {len(course.rounds()) - 1}, because every candidate in it failed:\n{listed}"

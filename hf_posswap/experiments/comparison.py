"""Runs a comparison: takes a model through its stages for each scheme and seed, and measures each stage."""

import dataclasses
import hashlib
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hf_posswap.calibration import calibration_refusal
from hf_posswap.errors import PosSwapError, SourceError, UnsupportedError
from hf_posswap.experiments.cells import Cell, Lane, Outcome, plan_lanes
from hf_posswap.experiments.observer import Observer
from hf_posswap.experiments.preparation import Prepared
from hf_posswap.experiments.record import Record
from hf_posswap.experiments.stages import Subject
from hf_posswap.swapped.questions import unfitted_reason
from hf_posswap.training.optimization import scheme_parameters


def run(prepared: Prepared, observer: Observer | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Measure the stock model and each scheme at each stage, and return the content of compare.json.

    If a swap or healing is refused after the model was loaded, the rows of this scheme have a reason instead of a loss.

    Args:
        prepared: the result of `prepare`.
        observer: callbacks for progress; None: no progress is reported.
        folder: the results folder. Cells that it already contains are not measured again, and compare.json and
            compare.csv are rewritten after every cell. None: nothing is written.

    Raises:
        OutputError: the folder holds a comparison with other settings, or cannot be written to.
    """
    observer = observer or Observer()
    record = Record(prepared, folder)
    lanes = plan_lanes(prepared.settings)
    cells = [cell for lane in lanes for cell in lane.cells]
    observer.planned(cells, [cell for cell in cells if cell in record])
    if all(cell in record for cell in cells):
        record.write()  # the settings may list the schemes in a new order
    for lane in lanes:
        wanted = [cell.stage for cell in lane.cells if cell not in record]
        if not wanted:
            continue
        first = prepared.settings.seed
        first_start = record.start_of(lane.scheme, first) if lane.seed != first else None
        for outcome in walk(prepared, lane, wanted, first_start, observer):
            record.add(outcome)
            observer.finished(outcome)
    return record.result()


def walk(
    prepared: Prepared, lane: Lane, wanted: Collection[str], first_start: str | None, observer: Observer
) -> Iterator[Outcome]:
    """Take one model through its stages and yield the outcome of each wanted stage as soon as it is known.

    Args:
        prepared: the result of `prepare`.
        lane: the scheme, its seed and its stages.
        wanted: the stages to measure; other stages run only if a wanted stage comes after them.
        first_start: digest of the scheme's initial parameters with the first seed, if this lane has another seed; None:
            there is none.
        observer: callbacks for progress.
    """
    last = max(lane.stages.index(stage) for stage in wanted)
    subject = Subject(prepared.plan(lane), observer)
    refusal, same = "", False
    for cell in lane.cells[: last + 1]:
        observer.cell(cell)
        began, measured = time.perf_counter(), cell.stage in wanted
        outcome = Outcome(cell, "absent", refusal) if refusal else _reached(prepared, subject, cell)
        if outcome.status == "refused":
            refusal = outcome.reason
        if cell.stage == "swapped":
            same = first_start is not None and outcome.facts.get("start") == first_start
        if outcome.status == "measured" and same and cell.stage in ("swapped", "calibrated"):
            outcome = Outcome(cell, "same", "nothing in it is random", facts=outcome.facts)
        if measured:
            if outcome.status == "measured":
                observer.stage("measuring")
                rows = prepared.measure.rows(subject.model, observer.worked)
                outcome = dataclasses.replace(outcome, rows=_labelled(prepared, cell, rows))
            seconds = {"seconds": round(time.perf_counter() - began, 3)}
            yield dataclasses.replace(outcome, facts=outcome.facts | seconds)


def _reached(prepared: Prepared, subject: Subject, cell: Cell) -> Outcome:
    """Take the model to the cell's stage and return the outcome. The caller adds the rows of a measured stage."""
    reasons = {refusal.scheme: refusal.reason for refusal in prepared.refusals}
    try:
        if cell.scheme in reasons:
            raise UnsupportedError(reasons[cell.scheme])
        absent = calibration_refusal(subject.model) if cell.stage == "calibrated" else None
        if absent is not None:  # the scheme does not have this stage; the next stages start from the stage before
            return Outcome(cell, "absent", absent)
        facts = facts_of(subject, subject.reach(cell.stage))
        unfitted = unfitted_reason(subject.model)
        if unfitted is not None:
            return Outcome(cell, "absent", unfitted)
        return Outcome(cell, "measured", facts=facts)
    except SourceError:  # the model cannot be loaded, so the error concerns all cells
        raise
    except PosSwapError as error:
        return Outcome(cell, "refused", str(error), _labelled(prepared, cell, prepared.measure.gaps(str(error))))


def facts_of(subject: Subject, report: Any) -> dict[str, Any]:
    """Return JSON-ready facts about the step that took the model to its stage.

    Args:
        subject: the model at its stage.
        report: the result of `Subject.reach`.
    """
    if subject.stage == "swapped":
        return {"start": _digest(subject.model)}
    if subject.stage == "calibrated":
        return {"calibration": dataclasses.asdict(report)}
    if report is None:
        return {}
    facts = report.to_dict()
    return {"healing": facts | {"losses": [row["loss"] for row in facts.pop("history")]}}


def _labelled(prepared: Prepared, cell: Cell, rows: Collection[Any]) -> list[dict[str, Any]]:
    label = {"model": prepared.settings.model, "scheme": cell.scheme, "stage": cell.stage, "seed": cell.seed}
    return [label | dataclasses.asdict(row) for row in rows]


def _digest(model: Any) -> str:
    """Return a digest of the scheme's parameters. Models with equal digests give equal numbers."""
    digest = hashlib.sha256()
    for name, weight in scheme_parameters(model).items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()

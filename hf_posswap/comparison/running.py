"""Runs a comparison, lane by lane."""

from pathlib import Path
from typing import Any

from hf_posswap.comparison.cells import plan_lanes
from hf_posswap.comparison.observer import Observer
from hf_posswap.comparison.preparation import Prepared
from hf_posswap.comparison.record import Record
from hf_posswap.comparison.stages import walk


def run(prepared: Prepared, observer: Observer | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Measure stock and each scheme at each stage, and return the content of compare.json.

    A scheme whose swap or healing is refused after the model was loaded becomes rows without a loss, with the reason.

    Args:
        prepared: the result of `prepare`.
        observer: callbacks for progress.
        folder: the results folder: cells that an interrupted run measured there are not measured again, and
            compare.json and compare.csv are rewritten after every cell. None: nothing is written.

    Raises:
        OutputError: the folder holds a comparison with other settings, or cannot be written to.
    """
    observer = observer or Observer()
    record = Record(prepared, folder)
    lanes = plan_lanes(prepared.settings)
    cells = [cell for lane in lanes for cell in lane.cells]
    observer.planned(cells, [cell for cell in cells if cell in record])
    if all(cell in record for cell in cells):
        record.write()  # in the order of the present settings
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

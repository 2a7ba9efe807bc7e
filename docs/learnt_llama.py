"""What the studies say of demo:llama: tables that docs/learnt.py puts into the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from marked import markdown
from study_values import SAME, SWAPPED_STAGES, Comparison, above, text

from hf_posswap.reporting.figures import Table
from hf_posswap.results.kinds import CONTROL, STOCK
from hf_posswap.results.points import LengthCurve, curves_of
from hf_posswap.results.reading import read_result

LENGTHS = (512, 2048)
PASSKEYS = {
    "stock": "stock",
    "rope-yarn": "`rope:yarn:factor=4`, swapped",
    "t5-calibrated": "`t5:per_layer=true`, calibrated",
    "t5-healed": "`t5:per_layer=true`, healed on 100,000",
    "t5-500k": "`t5:per_layer=true`, healed on 500,000",
}
"""What is in the folders of llama-passkey and llama-ruler."""
RUNS = ("llama-t5-500k", "llama-alibi")
"""Models that `finetune` healed with other supervision than the comparison."""


def swaps(folder: Path, stages: tuple[str, ...] = SWAPPED_STAGES[:2]) -> str:
    """Return nats above stock at the same length, by default swapped and calibrated."""
    result = Comparison(folder / "compare.json", base=LENGTHS[0])
    rows = [(f"`{scheme}`", *_above(result, scheme, stages)) for scheme in result.schemes]
    return markdown(Table(("scheme", *stages), tuple(rows)))


def healed(folder: Path) -> str:
    """Return nats above stock at the same length at every stage of the schemes that were healed, and the control's."""
    path = folder / "compare.json"
    if not path.is_file():
        return "Not measured yet."
    result = Comparison(path, base=LENGTHS[0])
    rows = [
        (f"`{scheme}`", *_above(result, scheme, SWAPPED_STAGES))
        for scheme in result.schemes
        if result.over_stock(scheme, "healed", LENGTHS[0]) is not None
    ]
    rows.append(("control", "", "", *_above(result, STOCK, (CONTROL,))))
    return markdown(Table(("scheme", *SWAPPED_STAGES), tuple(rows)))


def runs(folder: Path) -> str:
    """Return nats above stock at the same length of single runs of finetune, and what each learnt from."""
    rows: list[tuple[str, ...]] = []
    for name in RUNS:
        path = folder / name / "healing.json"
        if not path.is_file():
            continue
        result = read_result(path)
        options = result.settings["healing"]
        losses = {curve.stage: curve for curve in curves_of(result.rows, SAME)}
        scheme = losses["healed"].scheme
        lost = (_pair(losses[stage], losses[STOCK]) for stage in SWAPPED_STAGES[1:])
        lengths = ", ".join(map(str, options["length"] if isinstance(options["length"], list) else [options["length"]]))
        learnt = f"`{','.join(options['supervise'])}`"
        rows.append((f"`{scheme}`", learnt, f"{options['tokens']:,}", lengths, f"{options['learning_rate']:g}", *lost))
    return markdown(Table(("scheme", "learnt from", "tokens", "windows", "rate", *SWAPPED_STAGES[1:]), tuple(rows)))


def _pair(losses: LengthCurve, stock: LengthCurve) -> str:
    pairs = zip(losses.points, stock.points, strict=True)
    return "; ".join(text(above(found, known)) for found, known in pairs)


def ruler(folder: Path) -> str:
    """Return RULER's score of each model and task, by length, and after it what the answer gains over a wrong one."""
    rows: list[tuple[str, ...]] = []
    columns: list[str] = []
    for name, told in PASSKEYS.items():
        path = folder / name / "ruler.json"
        if not path.is_file():
            continue
        found = read_result(path).rows
        columns = list(dict.fromkeys(row["task"] for row in found))
        for length in sorted({row["length"] for row in found}):
            scores = {row["task"]: row for row in found if row["length"] == length}
            rows.append((told, str(length), *(_score(scores[task]) for task in columns)))
    return markdown(Table(("score; gain", "length", *columns), tuple(rows)))


def _score(row: Mapping[str, Any]) -> str:
    return "—" if row["score"] is None else f"{row['score']:.2f}; {row['gain']:.2f}"


def passkeys(folder: Path) -> str:
    """Return the share of pass keys chosen among ten, and written exactly, by length of the text, over all depths."""
    rows: list[tuple[str, ...]] = []
    lengths: list[int] = []
    for name, told in PASSKEYS.items():
        path = folder / name / "passkey.json"
        if not path.is_file():
            continue
        found = read_result(path).rows
        lengths = sorted({row["length"] for row in found})
        rows.append((told, *(_shares([row for row in found if row["length"] == length]) for length in lengths)))
    return markdown(Table(("pass keys: chosen among ten; written exactly", *map(str, lengths)), tuple(rows)))


def _shares(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row for row in rows if row["correct"] is not None]
    return "; ".join(f"{fmean(row[name] for row in known):.2f}" for name in ("correct", "exact")) if known else "—"


def _above(result: Comparison, scheme: str, stages: tuple[str, ...]) -> list[str]:
    """Return a cell for each stage: what is lost at the shorter and at the longer length."""
    pairs = ([result.over_stock(scheme, stage, length) for length in LENGTHS] for stage in stages)
    return ["; ".join(map(text, pair)) if any(pair) else "—" for pair in pairs]

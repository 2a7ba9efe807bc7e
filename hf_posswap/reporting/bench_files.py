"""The files of a benchmark: bench.csv with the ratios, bench.json with everything behind them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.benchmarking.settings import Settings
from hf_posswap.evaluation.environment import collect_environment
from hf_posswap.reporting.files import OutputError, write_text

FORMAT_VERSION = 1
KIND = "bench"
CSV_COLUMNS = (
    "model",
    "scheme",
    "device",
    "dtype",
    "backend",
    "mode",
    "length",
    "time_ratio",
    "time_ratio_low",
    "time_ratio_high",
    "memory_ratio",
    "repeats",
    "note",
)
DIGITS = 4


def bench_record(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what bench.json holds."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "model": settings.model,
        "seed": settings.seed,
        "settings": settings.conditions(),
        "texts": [],
        "environment": collect_environment(),
        "rows": [{name: _rounded(row[name]) for name in CSV_COLUMNS} for row in rows],
        "measured": [dict(row.get("measured", {})) for row in rows],
    }


def write_bench(settings: Settings, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write bench.csv and bench.json into an existing folder, each atomically; return their paths."""
    record = bench_record(settings, rows)
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return [write_text(folder / "bench.csv", to_csv(record["rows"])), write_text(folder / "bench.json", text)]


def read_rows(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of an earlier run in a folder, to go on from; none if there was no run.

    Raises:
        OutputError: bench.json is unreadable, or was measured under other conditions.
    """
    path = folder / "bench.json"
    if not path.exists():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        conditions, rows, measured = record["settings"], record["rows"], record["measured"]
        known = [row | ({"measured": more} if more else {}) for row, more in zip(rows, measured, strict=True)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"cannot go on from {str(path)!r}: {error!r}. Give another folder, or --fresh.") from error
    wanted = json.loads(json.dumps(settings.conditions()))
    if conditions != wanted:
        differing = [name for name in wanted if conditions.get(name) != wanted[name]]
        raise OutputError(
            f"{str(path)!r} was measured with other {', '.join(differing)}, so new cells do not belong beside its own. "
            "Give another folder with --output-dir, or --fresh to measure anew."
        )
    return known


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV text; a missing value is an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _rounded(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else value

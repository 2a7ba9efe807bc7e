"""The files of a benchmark: bench.csv with the ratios, bench.json with the measurements and settings as well."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.benchmarking.settings import BenchmarkSettings, cell_of
from hf_posswap.errors import PosSwapError
from hf_posswap.results.files import OutputError
from hf_posswap.results.kinds import BENCH
from hf_posswap.results.reading import read_result
from hf_posswap.results.writing import make_result, write_result

DIGITS = 4


def write_bench(settings: BenchmarkSettings, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write bench.csv and bench.json into an existing folder, each atomically; return their paths."""
    result = make_result(
        BENCH,
        [{name: _rounded(value) for name, value in row.items()} for row in rows],
        model=settings.model,
        seed=settings.seed,
        settings=settings.conditions(),
        texts=[],
        complete={cell_of(row) for row in rows} >= set(settings.cells()),
        measured=[dict(row.get("measured", {})) for row in rows],
    )
    return write_result(result, folder)


def read_rows(folder: Path, settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Return the rows of an earlier run in a folder, to resume it; empty if there was no run.

    Raises:
        OutputError: bench.json is unreadable, or was measured under other conditions.
    """
    path = folder / f"{BENCH.file}.json"
    if not path.exists():
        return []
    try:
        record = read_result(path)
        conditions, measured = record.settings, record.facts["measured"]
        known = [row | ({"measured": more} if more else {}) for row, more in zip(record.rows, measured, strict=True)]
    except (PosSwapError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"cannot go on from {str(path)!r}: {error!r}. Give another folder, or --fresh.") from error
    wanted = json.loads(json.dumps(settings.conditions()))
    if conditions != wanted:
        differing = [name for name in wanted if conditions.get(name) != wanted[name]]
        raise OutputError(
            f"{str(path)!r} was measured with other {', '.join(differing)}, so new cells do not belong beside its own. "
            "Give another folder with --output-dir, or --fresh to measure anew."
        )
    return known


def _rounded(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else value

"""The files of a comparison: compare.json with everything, compare.csv with the rows, compare.png drawn from them."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.reporting.comparison_figure import draw_comparison
from hf_posswap.reporting.files import OutputError, write_atomically, write_text

CSV_COLUMNS = (
    "model",
    "scheme",
    "protocol",
    "length",
    "loss",
    "perplexity",
    "loss_low",
    "loss_high",
    "tokens",
    "windows",
    "note",
)
"""No times: the same seed on the same machine writes the same compare.csv."""


def write_comparison(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write compare.csv, compare.json and compare.png into an existing folder, each atomically.

    Returns:
        The paths of the files.
    """
    table = write_text(folder / "compare.csv", to_csv(result["rows"]))
    record = write_text(folder / "compare.json", to_json(result))
    figure = write_atomically(folder / "compare.png", lambda path: draw_comparison(read_comparison(record), path))
    return [table, record, figure]


def read_comparison(path: Path) -> dict[str, Any]:
    """Read a compare.json.

    Raises:
        OutputError: the file is missing or is no comparison.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read the comparison {str(path)!r}: {error}.") from error
    if not isinstance(result, dict) or not isinstance(result.get("rows"), list):
        raise OutputError(f"{str(path)!r} is no comparison: it has no rows. Give a compare.json.")
    return result


def to_json(result: Mapping[str, Any]) -> str:
    """Return a comparison as JSON text; a perplexity too big for a float becomes null, as JSON has no infinity."""
    return json.dumps(_finite(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV text; a missing value is an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_finite(row) for row in rows)
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    """Copy nested containers with infinities and NaN replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

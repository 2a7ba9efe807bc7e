"""Result files: for each kind of measurement a CSV of tidy rows, and a JSON that also says where they come from.

A results folder holds such pairs, anywhere below it. The CSV has no times: the same seed gives the same bytes.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.errors import PosSwapError
from hf_posswap.reporting.files import write_text

FORMAT_VERSION = 1
STAGES = ("stock", "swapped", "calibrated", "healed", "control")
"""What was done to a model before it was measured."""

_MODEL = ("model", "scheme", "stage", "seed")
_LOSSES = ("loss", "perplexity", "loss_low", "loss_high", "tokens", "windows", "note")
COLUMNS: dict[str, tuple[str, ...]] = {
    "comparison": (*_MODEL, "protocol", "length", *_LOSSES),
    "loss-by-length": (*_MODEL, "protocol", "length", *_LOSSES),
    "loss-by-position": (*_MODEL, "length", "position_from", "position_to", "loss", "tokens", "note"),
    "passkey": (*_MODEL, "length", "depth", "correct", "exact", "trials", "chance", "note"),
    "retrieval": (*_MODEL, "length", "metric", "value", "low", "high", "queries", "note"),
    "bench": (
        *("model", "scheme", "device", "dtype", "backend", "mode", "length"),
        *("time_ratio", "time_ratio_low", "time_ratio_high", "memory_ratio", "repeats", "note"),
    ),
    "biases": (*_MODEL, "layer", "head", "distance", "value", "quantity", "note"),
}
"""Columns of the rows, by kind. A gap is a row without its loss or value, and a note that says why."""


class ResultFileError(PosSwapError):
    """A result file that cannot be read."""


def make_result(
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str,
    seed: int,
    settings: Mapping[str, Any],
    texts: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
    **facts: Any,
) -> dict[str, Any]:
    """Return the content of a result's JSON file.

    Args:
        kind: a key of `COLUMNS`.
        rows: tidy rows with at least the columns of this kind.
        model: the model measured, as the user named it.
        seed: of everything drawn at random.
        settings: what else was asked for.
        texts: name, tokens and sha256 of each text.
        environment: what `collect_environment()` returned.
        facts: anything more to keep, such as `train_length`.
    """
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "model": model,
        "seed": seed,
        **facts,
        "settings": dict(settings),
        "texts": [dict(text) for text in texts],
        "environment": dict(environment),
        "rows": [{column: row[column] for column in COLUMNS[kind]} for row in rows],
    }


def write_result(result: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Write NAME.csv and NAME.json into an existing folder, each atomically, and return their paths."""
    table = write_text(folder / f"{name}.csv", to_csv(result["kind"], result["rows"]))
    return [table, write_text(folder / f"{name}.json", to_json(result))]


def read_result(path: Path) -> dict[str, Any]:
    """Read a result's JSON file.

    Raises:
        ResultFileError: it is missing, is no result, or is of another version; names the file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultFileError(f"cannot read the result file {str(path)!r}: {error}.") from error
    if not isinstance(result, dict) or not isinstance(result.get("rows"), list):
        raise ResultFileError(f"{str(path)!r} is no result file: it has no rows.")
    if result.get("format_version") != FORMAT_VERSION:
        raise ResultFileError(
            f"{str(path)!r} has format version {result.get('format_version')!r}; this version of hf_posswap reads "
            f"{FORMAT_VERSION}."
        )
    return result


def to_csv(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text; a missing value is an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS[kind], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(finite(row) for row in rows)
    return buffer.getvalue()


def to_json(value: Any) -> str:
    """Return JSON text; a number that is not finite becomes null, as JSON has none."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Copy nested containers with infinities and NaN replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

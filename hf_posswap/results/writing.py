"""The writer of results: a CSV of tidy rows, and a JSON file that also has their settings, texts and environment.

A results folder holds such pairs, anywhere below it. The CSV has no times, so the same seed gives the same bytes.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.results.environment import collect_environment
from hf_posswap.results.files import write_text
from hf_posswap.results.kinds import FORMAT_VERSION, KINDS, Kind


def make_result(
    kind: Kind,
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str,
    seed: int,
    settings: Mapping[str, Any],
    texts: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Return the content of a result's JSON file.

    Args:
        kind: the kind of the rows.
        rows: tidy rows with at least the columns of this kind.
        model: the measured model, by the user's name for it.
        seed: seed of all random numbers.
        settings: further settings of the measurement.
        texts: name, tokens and sha256 of each text.
        environment: environment of the measurement. Default: that of this process.
        facts: further entries, such as `train_length`.
    """
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind.name,
        "model": model,
        "seed": seed,
        **facts,
        "settings": dict(settings),
        "texts": [dict(text) for text in texts],
        "environment": dict(collect_environment() if environment is None else environment),
        "rows": [{name: row[name] for name in kind.names} for row in rows],
    }


def write_result(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a result's CSV and JSON file into an existing folder, each atomically, and return their paths."""
    kind = KINDS[result["kind"]]
    table = write_text(folder / f"{kind.file}.csv", to_csv(kind, result["rows"]))
    return [table, write_text(folder / f"{kind.file}.json", to_json(result))]


def to_csv(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text; a missing value is an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, kind.names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(finite(row) for row in rows)
    return buffer.getvalue()


def to_json(value: Any) -> str:
    """Return JSON text, an object or list of plain values on one line: a row, a step, a list of numbers.

    A number that is not finite becomes null, because JSON cannot represent it.
    """
    return _laid_out(finite(value), "") + "\n"


def finite(value: Any) -> Any:
    """Copy nested containers with infinities and NaN replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _laid_out(value: Any, indent: str) -> str:
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(item, dict | list) for item in items):
        return _plain(value)
    inside = indent + "  "
    names = [f"{_plain(str(name))}: " for name in value] if isinstance(value, dict) else [""] * len(items)
    lines = (f"{inside}{name}{_laid_out(item, inside)}" for name, item in zip(names, items, strict=True))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(lines) + f"\n{indent}{closing}"


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

"""The reader of result files: checks their content against the table of kinds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_posswap.errors import PosSwapError
from hf_posswap.results.healing import healing_result, is_healing
from hf_posswap.results.kinds import AGREEMENT, COMPARISON, FORMAT_VERSION, KINDS, LENGTHS, STOCK, Column, Kind, Row

KNOWN = ", ".join(KINDS)
"""Names of the known kinds, for error messages."""


class ResultsError(PosSwapError):
    """A folder without results, or a result file that cannot be read; the message gives the file and the reason."""


@dataclass(frozen=True)
class ResultFile:
    """One result file.

    Attributes:
        path: path of the file, relative to the folder if it was read as part of one.
        kind: the kind of its rows.
        rows: its rows, each with model, scheme, stage, seed and note.
        model: the measured model, by its name in the file.
        texts: name, tokens and sha256 of each text.
        train_length: length of the longest texts that the stock model was trained on, if the file has it.
        settings: settings of the measurement.
        environment: versions, hardware and command.
        facts: all other entries of the file, such as `complete` or `cells`.
    """

    path: str
    kind: Kind
    rows: tuple[Row, ...]
    model: str = ""
    texts: tuple[Mapping[str, Any], ...] = ()
    train_length: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The family of its kind; agreement is a separate family, although it has the columns of losses."""
        protocols = {row.get("protocol") for row in self.rows}
        return AGREEMENT if self.kind.family == LENGTHS.family and protocols == {AGREEMENT} else self.kind.family


def read_result(path: Path) -> ResultFile:
    """Read a result file.

    Raises:
        ResultsError: the file is missing, cannot be read, or is not a result of a known kind.
    """
    return result_file(read_json(path), str(path))


def result_file(content: Any, path: str = "compare.json") -> ResultFile:
    """Return the given content as a result file, checked as if it were read from `path`.

    Raises:
        ResultsError: see `read_result`.
    """
    if is_healing(content):
        content = healing_result(content)

    def wrong(reason: str) -> ResultsError:
        return ResultsError(f"cannot read {path!r}: {reason}.")

    if not has_rows(content):
        raise wrong("it is no result file: it has no rows")
    version = content.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise wrong(f"its format version is {version!r}, and this version of hf_posswap reads {FORMAT_VERSION}")
    if kind_of(content) not in KINDS:
        raise wrong(f"its kind is {kind_of(content)!r}, and this version of hf_posswap knows {KNOWN}")
    kind = KINDS[kind_of(content)]
    defaults = {"model": str(content.get("model", "")), "seed": content.get("seed")}
    base_model = _mapping(content.get("pos_scheme")).get("base_model")
    rows = []
    for place, row in enumerate(content["rows"], start=1):
        try:
            checked = _row(row, kind.columns, defaults)
        except ResultsError as error:
            raise wrong(f"row {place}: {error}") from error
        # A checkpoint is shown together with the model that it was made from.
        rows.append(checked | {"model": base_model} if isinstance(base_model, str) else checked)
    train_length = content.get("train_length") or _mapping(content.get("settings")).get("train_length")
    known = ("format_version", "kind", "model", "seed", "train_length", "texts", "settings", "environment", "rows")
    return ResultFile(
        path=path,
        kind=kind,
        rows=tuple(rows),
        model=defaults["model"],
        texts=tuple(text for text in _list(content.get("texts")) if isinstance(text, dict)),
        train_length=None if train_length is None or not _is_number(train_length) else int(train_length),
        settings=_mapping(content.get("settings")),
        environment=_mapping(content.get("environment")),
        facts={name: value for name, value in content.items() if name not in known},
    )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; NaN and Infinity, which JSON does not have, are refused as syntax errors.

    Raises:
        ResultsError: the file cannot be read; the message gives the file and the reason.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no JSON number; a gap is written as null")

    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise ResultsError(f"cannot read {str(path)!r}: it is nested too deeply.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ResultsError(f"cannot read {str(path)!r}: {reason}.") from error


def has_rows(content: Any) -> bool:
    """Return whether the content of a JSON file has rows, as every result has."""
    return isinstance(content, dict) and isinstance(content.get("rows"), list)


def kind_of(content: Mapping[str, Any]) -> str:
    """Return the kind that a file names; old files of compare without a kind are recognised by their rows."""
    if "kind" in content:
        return content["kind"] if isinstance(content["kind"], str) else repr(content["kind"])
    first = next((row for row in content["rows"] if isinstance(row, dict)), {})
    return COMPARISON.name if {"scheme", "protocol", "length", "loss"} <= set(first) else "none"


def _row(row: Any, columns: Sequence[Column], defaults: Mapping[str, Any]) -> Row:
    """Return a row with the columns of its kind; raise `ResultsError` if one is missing or of the wrong type."""
    if not isinstance(row, dict):
        raise ResultsError("it is no object with columns")
    for column in columns:
        _check(row, column)
    note = row.get("note")
    return {
        **row,
        **{name: value if row.get(name) is None else row[name] for name, value in defaults.items()},
        "stage": row.get("stage") or (STOCK if row["scheme"] == STOCK else "swapped"),
        "note": "" if note is None else note,
    }


def _check(row: Row, column: Column) -> None:
    if column.name not in row:
        if column.optional:
            return
        raise ResultsError(f"it has no {column.name!r}")
    value = row[column.name]
    if value is None and column.nullable:
        return
    if not (isinstance(value, str) if column.holds is str else _is_number(value)):
        raise ResultsError(f"its {column.name!r} is {value!r}, not a {'text' if column.holds is str else 'number'}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

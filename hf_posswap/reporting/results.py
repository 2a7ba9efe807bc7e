"""Reading a folder of results: every result file below it, checked, and grouped into what belongs in one figure."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_posswap.errors import PosSwapError
from hf_posswap.reporting.colours import CONTROL, STOCK
from hf_posswap.reporting.healing_files import healing_result, is_healing

FORMAT_VERSION = 1
STAGES = ("swapped", "calibrated", "healed")
"""Of a swapped model; the unswapped one is measured as "stock" and, trained again, as "control"."""

_NUMBERS: dict[str, tuple[str, ...]] = {
    "lengths": ("length", "loss"),
    "agreement": ("length", "loss"),
    "positions": ("length", "position_from", "position_to", "loss"),
    "passkey": ("length", "depth", "correct"),
    "retrieval": ("length", "value"),
    "bench": ("length", "time_ratio"),
    "biases": ("distance", "value"),
}
_TEXTS: dict[str, tuple[str, ...]] = {
    "lengths": ("protocol",),
    "agreement": ("protocol",),
    "retrieval": ("metric",),
    "bench": ("mode",),
}
_FAMILIES = {
    "comparison": "lengths",
    "loss-by-length": "lengths",
    "loss-by-position": "positions",
    "passkey": "passkey",
    "retrieval": "retrieval",
    "bench": "bench",
    "biases": "biases",
}
KINDS = tuple(_FAMILIES)
AGREEMENT = "agreement"
"""A protocol of losses by length, and the family of results by it."""
_VALUES = ("loss", "correct", "value", "time_ratio", "distance")
"""Numbers that a gap leaves out."""
_IDENTITY = (
    *("scheme", "stage", "seed", "protocol", "length", "position_from", "position_to", "depth", "metric"),
    *("device", "dtype", "backend", "mode", "layer", "head", "distance", "quantity"),
)
"""Columns that say what a row is of, not what was measured."""

Row = dict[str, Any]


class ResultsError(PosSwapError):
    """A folder without results, or a result file that cannot be read; names the file and the reason."""


@dataclass(frozen=True)
class ResultFile:
    """One result file.

    Attributes:
        path: where it was read from, relative to the folder.
        family: what its rows measure: "lengths", "agreement", "positions", "passkey", "retrieval", "bench" or "biases".
        rows: its rows, each with model, scheme, stage and seed.
        texts: name, tokens and sha256 of each text.
        train_length: longest text the stock model was trained on, if the file says.
        settings: what was asked for.
        environment: versions, hardware and command.
    """

    path: str
    family: str
    rows: tuple[Row, ...]
    texts: tuple[Mapping[str, Any], ...] = ()
    train_length: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


ApartBy = Literal["nothing", "texts", "file"]


@dataclass(frozen=True)
class Group:
    """Rows that belong together: of one family, one model and the same texts, from one or several files.

    Attributes:
        family: see `ResultFile`.
        model: the model's name.
        files: where the rows come from.
        rows: all of them, without repetition.
        apart_by: what tells it from others of its family and model: nothing if there are none, its texts, or, where
            another has the same texts and says different things of them, its file.
    """

    family: str
    model: str
    files: tuple[ResultFile, ...]
    rows: tuple[Row, ...]
    apart_by: ApartBy = "nothing"

    @property
    def train_length(self) -> int | None:
        """Longest text the stock model was trained on, if a file says."""
        return next((file.train_length for file in self.files if file.train_length is not None), None)

    def stages(self) -> list[str]:
        """The stages of swapped models that occur, in order."""
        found = {row["stage"] for row in self.rows if row["stage"] not in (STOCK, CONTROL)}
        return [stage for stage in STAGES if stage in found] + sorted(found - set(STAGES))

    def of_stage(self, stage: str) -> list[Row]:
        """Rows of the stock model, of its control, and of swapped models in one stage, in this order of schemes."""
        kept = [row for row in self.rows if row["stage"] in (STOCK, CONTROL, stage)]
        return sorted(kept, key=lambda row: (STOCK, stage, CONTROL).index(row["stage"]))


@dataclass(frozen=True)
class Results:
    """All results of a folder.

    Attributes:
        groups: in the order of the files.
        notes: files that were left out, and why.
    """

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    def models(self) -> list[str]:
        """Names of the models, in order, without repetition."""
        return list(dict.fromkeys(group.model for group in self.groups))

    def keys(self) -> list[str]:
        """Every scheme that occurs, "stock" and "control" first, in order, without repetition."""
        found = dict.fromkeys(key_of(row) for group in self.groups for row in group.rows)
        return [key for key in (STOCK, CONTROL) if key in found] + [key for key in found if key not in (STOCK, CONTROL)]


def key_of(row: Row) -> str:
    """Return what decides how a row is drawn: "stock", "control", or its scheme."""
    return row["stage"] if row["stage"] in (STOCK, CONTROL) else row["scheme"]


def read_results(folder: Path) -> Results:
    """Read every result file anywhere below a folder.

    Other JSON files, such as a model's config, are passed over. A kind of results that this version does not know is
    passed over with a note.

    Args:
        folder: where results were written, by one command or by several.

    Raises:
        ResultsError: no such folder, no results in it, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise ResultsError(f"{str(folder)!r} is no folder. Give the folder that holds the results.")
    files: list[ResultFile] = []
    notes: list[str] = []
    others = 0
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        content = _content(path)
        if is_healing(content):
            content = healing_result(content)
            if not content["rows"]:
                notes.append(f"{str(path)!r} has no stage that was measured: finetune measures on --eval-file.")
                continue
        if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
            others += 1
            continue
        kind = _kind(content)
        if kind not in _FAMILIES:
            notes.append(
                f"{str(path)!r} is not shown: its kind is {kind!r}, and this version knows {', '.join(KINDS)}."
            )
            continue
        files.append(_result_file(path, path.relative_to(folder).as_posix(), kind, content))
    if not files:
        raise ResultsError(_nothing_found(folder, others, notes))
    return Results(tuple(_grouped(files)), tuple(notes))


def _nothing_found(folder: Path, others: int, notes: Sequence[str]) -> str:
    return (
        f"{str(folder)!r} holds no results. Looked anywhere below it for JSON files with rows of a kind among "
        f"{', '.join(KINDS)}, such as hf-posswap compare, evaluate, bench and bias write; found {others} other JSON "
        f"file{'' if others == 1 else 's'}." + "".join(f"\n{note}" for note in notes)
    )


def result_file(content: Mapping[str, Any], path: str = "compare.json") -> ResultFile:
    """Return the content of a result file that is at hand already, checked as if it were read from `path`.

    Raises:
        ResultsError: it is no result, or of an unknown kind.
    """
    if not isinstance(content.get("rows"), list) or _kind(content) not in _FAMILIES:
        raise ResultsError(f"{path!r} is no result file of a kind among {', '.join(KINDS)}.")
    return _result_file(Path(path), path, _kind(content), content)


def as_group(file: ResultFile) -> Group:
    """Return the rows of one file as a group of their own; the model is the first row's."""
    return Group(file.family, file.rows[0]["model"] if file.rows else "", (file,), file.rows)


def _content(path: Path) -> Any:
    """Return what a JSON file holds; NaN and Infinity, which are no JSON, are refused like any other mistake."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no JSON number; a gap is written as null")

    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise ResultsError(f"cannot read {str(path)!r}: it is nested too deeply.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ResultsError(f"cannot read {str(path)!r}: {reason}.") from error


def _kind(content: Mapping[str, Any]) -> Any:
    """The file's kind; files of compare from before there were kinds are told by their rows."""
    if "kind" in content:
        return content["kind"] if isinstance(content["kind"], str) else repr(content["kind"])
    first = next((row for row in content["rows"] if isinstance(row, dict)), {})
    return "comparison" if {"scheme", "protocol", "length", "loss"} <= set(first) else "none"


def _result_file(path: Path, name: str, kind: str, content: Mapping[str, Any]) -> ResultFile:
    def wrong(reason: str) -> ResultsError:
        return ResultsError(f"cannot read {str(path)!r}: {reason}.")

    version = content.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise wrong(f"its format version is {version!r}, and this version of hf_posswap reads {FORMAT_VERSION}")
    family = _family(kind, content["rows"])
    defaults = {"model": str(content.get("model", "")), "seed": content.get("seed")}
    base_model = _mapping(content.get("pos_scheme")).get("base_model")
    rows = []
    for place, row in enumerate(content["rows"], start=1):
        try:
            checked = _row(row, family, defaults)
        except ResultsError as error:
            raise wrong(f"row {place}: {error}") from error
        # A checkpoint stands beside the model it was made from.
        rows.append(checked | {"model": base_model} if isinstance(base_model, str) else checked)
    train_length = content.get("train_length") or _mapping(content.get("settings")).get("train_length")
    return ResultFile(
        path=name,
        family=family,
        rows=tuple(rows),
        texts=tuple(text for text in _list(content.get("texts")) if isinstance(text, dict)),
        train_length=int(train_length) if train_length is not None and _is_number(train_length) else None,
        settings=_mapping(content.get("settings")),
        environment=_mapping(content.get("environment")),
    )


def _family(kind: str, rows: Sequence[Any]) -> str:
    """Return what rows measure; agreement stands apart from losses, with which it shares its columns."""
    protocols = {row.get("protocol") for row in rows if isinstance(row, dict)}
    return AGREEMENT if _FAMILIES[kind] == "lengths" and protocols == {AGREEMENT} else _FAMILIES[kind]


def _row(row: Any, family: str, defaults: Mapping[str, Any]) -> Row:
    """Return a row with the columns of the contract, or say which one is missing or of the wrong type."""
    if not isinstance(row, dict):
        raise ResultsError("it is no object with columns")
    for column in ("scheme", *_TEXTS.get(family, ())):
        if not isinstance(row.get(column), str):
            raise ResultsError(f"its {column!r} is {row.get(column)!r}, not a text")
    for column in _NUMBERS[family]:
        if column not in row:
            raise ResultsError(f"it has no {column!r}")
        value = row[column]
        if not _is_number(value) and not (value is None and column in _VALUES):
            raise ResultsError(f"its {column!r} is {value!r}, not a number")
    _check_optional_numbers(row)
    stage = row.get("stage", STOCK if row["scheme"] == STOCK else "swapped")
    if not isinstance(stage, str):
        raise ResultsError(f"its 'stage' is {stage!r}, not a text")
    note = row.get("note")
    return {
        **row,
        "model": str(row.get("model", defaults["model"])),
        "seed": row.get("seed", defaults["seed"]),
        "stage": stage,
        "note": "" if note is None else str(note),
    }


def _check_optional_numbers(row: Row) -> None:
    optional = (
        *("perplexity", "loss_low", "loss_high", "tokens", "windows", "trials", "chance", "low", "high", "queries"),
        *("time_ratio_low", "time_ratio_high", "memory_ratio", "repeats", "layer", "head"),
    )
    for column in optional:
        if row.get(column) is not None and not _is_number(row[column]):
            raise ResultsError(f"its {column!r} is {row[column]!r}, not a number")


def _grouped(files: Iterable[ResultFile]) -> list[Group]:
    """Put rows of one family, model and text together, unless they say different things of the same."""
    groups: list[tuple[tuple[Any, ...], dict[tuple[Any, ...], Row], list[ResultFile]]] = []
    for file in files:
        for model in dict.fromkeys(row["model"] for row in file.rows):
            own = {_identity(row): row for row in file.rows if row["model"] == model}
            place = (file.family, model, _texts_key(file))
            for other, rows, members in groups:
                if other == place and not _contradict(rows, own):
                    rows.update(own)
                    members.append(file)
                    break
            else:
                groups.append((place, own, [file]))
    places = [place for place, _, _ in groups]
    return [
        Group(place[0], place[1], tuple(members), tuple(rows.values()), _apart_by(place, places))
        for place, rows, members in groups
    ]


def _apart_by(place: tuple[Any, ...], places: Sequence[tuple[Any, ...]]) -> ApartBy:
    if places.count(place) > 1:
        return "file"
    return "texts" if sum(other[:2] == place[:2] for other in places) > 1 else "nothing"


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(str(row.get(column)) for column in _IDENTITY)


def _contradict(one: Mapping[tuple[Any, ...], Row], other: Mapping[tuple[Any, ...], Row]) -> bool:
    return any(
        one[key].get(column) != other[key].get(column) for key in one.keys() & other.keys() for column in _VALUES
    )


def _texts_key(file: ResultFile) -> tuple[str, ...]:
    if file.family == "bench":
        return ()
    return tuple(sorted(str(text.get("sha256") or text.get("name")) for text in file.texts))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

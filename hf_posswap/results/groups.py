"""A folder of results: all result files anywhere below it, grouped by the figure that they belong to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hf_posswap.results.healing import is_healing
from hf_posswap.results.kinds import CONTROL, KINDS, STOCK, Kind, Row
from hf_posswap.results.points import key_of, swapped_stages
from hf_posswap.results.reading import KNOWN, ResultFile, ResultsError, has_rows, kind_of, read_json, result_file

ApartBy = Literal["nothing", "texts", "file"]


@dataclass(frozen=True)
class Group:
    """Rows of one family, one model and the same texts, from one or several files.

    Attributes:
        family: see `ResultFile`.
        model: the model's name.
        files: the files that the rows come from.
        rows: all rows, without repetition.
        apart_by: the property that distinguishes this group from others of its family and model: none if there are no
            others, its texts, or its file if another group has the same texts but contradicting numbers.
    """

    family: str
    model: str
    files: tuple[ResultFile, ...]
    rows: tuple[Row, ...]
    apart_by: ApartBy = "nothing"

    @property
    def kind(self) -> Kind:
        """The kind of the group's first file; kinds of one family differ in name only."""
        return self.files[0].kind

    @property
    def train_length(self) -> int | None:
        """Length of the longest texts that the stock model was trained on, if a file has it."""
        return next((file.train_length for file in self.files if file.train_length is not None), None)

    def stages(self) -> list[str]:
        """The stages of swapped models that occur, in order."""
        return swapped_stages(self.rows)

    def of_stage(self, stage: str) -> list[Row]:
        """Return the rows of the stock model, then of its control, then of swapped models in one stage."""
        kept = [row for row in self.rows if row["stage"] in (STOCK, CONTROL, stage)]
        return sorted(kept, key=lambda row: (STOCK, stage, CONTROL).index(row["stage"]))


@dataclass(frozen=True)
class Results:
    """All results of a folder.

    Attributes:
        groups: the groups, in the order of the files.
        notes: the files that were left out, with the reasons.
    """

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    def models(self) -> list[str]:
        """Names of the models, in order, without repetition."""
        return list(dict.fromkeys(group.model for group in self.groups))

    def keys(self) -> list[str]:
        """All schemes that occur, in order and without repetition, with "stock" and "control" first."""
        found = dict.fromkeys(key_of(row) for group in self.groups for row in group.rows)
        return [key for key in (STOCK, CONTROL) if key in found] + [key for key in found if key not in (STOCK, CONTROL)]


def read_results(folder: Path) -> Results:
    """Read all result files anywhere below a folder.

    Other JSON files, such as a model's config, are ignored. A file of a kind that this version does not know is skipped
    with a note.

    Args:
        folder: a folder with results of one or several commands.

    Raises:
        ResultsError: the folder does not exist, has no results, or has a result file that cannot be read.
    """
    if not folder.is_dir():
        raise ResultsError(f"{str(folder)!r} is no folder. Give the folder that holds the results.")
    files: list[ResultFile] = []
    notes: list[str] = []
    others = 0
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        content = read_json(path)
        healed = is_healing(content)
        if not healed and not has_rows(content):
            others += 1
        elif not healed and kind_of(content) not in KINDS:
            kind = kind_of(content)
            notes.append(f"{str(path)!r} is not shown: its kind is {kind!r}, and this version knows {KNOWN}.")
        else:
            file = result_file(content, str(path))
            if healed and not file.rows:
                notes.append(f"{str(path)!r} has no stage that was measured: finetune measures on --eval-file.")
                continue
            files.append(replace(file, path=path.relative_to(folder).as_posix()))
    if not files:
        raise ResultsError(_nothing_found(folder, others, notes))
    return Results(tuple(_grouped(files)), tuple(notes))


def as_group(file: ResultFile) -> Group:
    """Return the rows of one file as one group; its model is that of the first row."""
    return Group(file.family, file.rows[0]["model"] if file.rows else "", (file,), file.rows)


def _nothing_found(folder: Path, others: int, notes: Sequence[str]) -> str:
    return (
        f"{str(folder)!r} holds no results. Looked anywhere below it for JSON files with rows of a kind among "
        f"{KNOWN}, such as hf-posswap compare, evaluate, bench and bias write; found {others} other JSON "
        f"file{'' if others == 1 else 's'}." + "".join(f"\n{note}" for note in notes)
    )


def _grouped(files: Iterable[ResultFile]) -> list[Group]:
    """Group rows by family, model and texts; files with different numbers for the same row are kept apart."""
    groups: list[tuple[tuple[Any, ...], dict[tuple[str, ...], Row], list[ResultFile]]] = []
    for file in files:
        for model in dict.fromkeys(row["model"] for row in file.rows):
            own = {file.kind.identity(row): row for row in file.rows if row["model"] == model}
            place = (file.family, model, _texts_key(file))
            for other, rows, members in groups:
                if other == place and not _contradict(file.kind, rows, own):
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


def _contradict(kind: Kind, one: Mapping[tuple[str, ...], Row], other: Mapping[tuple[str, ...], Row]) -> bool:
    return any(one[key][column] != other[key][column] for key in one.keys() & other.keys() for column in kind.measured)


def _texts_key(file: ResultFile) -> tuple[str, ...]:
    if not file.kind.by_texts:
        return ()
    return tuple(sorted(str(text.get("sha256") or text.get("name")) for text in file.texts))

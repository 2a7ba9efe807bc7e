"""A folder of results: every result file anywhere below it, grouped into what belongs in one figure."""

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
    def kind(self) -> Kind:
        """Its kind; those of one family differ in name only."""
        return self.files[0].kind

    @property
    def train_length(self) -> int | None:
        """Longest text the stock model was trained on, if a file says."""
        return next((file.train_length for file in self.files if file.train_length is not None), None)

    def stages(self) -> list[str]:
        """The stages of swapped models that occur, in order."""
        return swapped_stages(self.rows)

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
    """Return the rows of one file as a group of their own; the model is the first row's."""
    return Group(file.family, file.rows[0]["model"] if file.rows else "", (file,), file.rows)


def _nothing_found(folder: Path, others: int, notes: Sequence[str]) -> str:
    return (
        f"{str(folder)!r} holds no results. Looked anywhere below it for JSON files with rows of a kind among "
        f"{KNOWN}, such as hf-posswap compare, evaluate, bench and bias write; found {others} other JSON "
        f"file{'' if others == 1 else 's'}." + "".join(f"\n{note}" for note in notes)
    )


def _grouped(files: Iterable[ResultFile]) -> list[Group]:
    """Put rows of one family, model and text together, unless they say different things of the same."""
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

"""The kinds of results: for each kind its columns, their types, which may be missing, and which identify a row.

A new kind of measurement needs an entry here, code that measures it, and a figure that shows it, found by
`reporting.figures.draws`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT_VERSION = 1
STOCK, CONTROL = "stock", "control"
"""The unswapped model, and the unswapped model trained on the tokens that healed the others."""
SWAPPED_STAGES = ("swapped", "calibrated", "healed")
STAGES = (STOCK, *SWAPPED_STAGES, CONTROL)
"""What was done to a model before it was measured."""
AGREEMENT = "agreement"
"""The protocol whose loss is 1 − the mean cosine to the stock model's embeddings, and the family of its rows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the rows of a kind.

    Attributes:
        name: its name.
        holds: float for numbers, whole ones too, or str.
        identifies: whether it says what a row is of. Rows that are equal in all of these are the same row.
        measured: whether it is what the kind measures. Rows that are the same row must agree in it, and a row in which
            it is null is a gap, whose note says why.
        nullable: whether it may be null; what is measured always may.
        optional: whether it may be missing too, as it is in files that were written before there was the column.
    """

    name: str
    holds: type[float | str] = float
    identifies: bool = False
    measured: bool = False
    nullable: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of result.

    Attributes:
        name: what files call it.
        file: name of its files, without their endings.
        family: kinds of one family have the same columns, and are drawn together.
        columns: of its rows, in the order of the CSV. Where model, stage and seed are not among them, they are those of
            the whole file.
        measures: what it is the measurement of, in words.
        of_weights: whether it measures the weights of the model that it names, and no models that it swaps itself.
        by_texts: whether what it measures depends on the texts.
    """

    name: str
    file: str
    family: str
    columns: tuple[Column, ...]
    measures: str
    of_weights: bool = True
    by_texts: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the columns that are measured."""
        return tuple(column.name for column in self.columns if column.measured)

    def identity(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what a row is of; equal for rows of the same."""
        own = (column.name for column in self.columns if column.identifies)
        return tuple(str(row.get(name)) for name in dict.fromkeys((*_WHOLE_FILE, *own)))


def _keys(*names: str, holds: type[float | str] = float, open: bool = False) -> tuple[Column, ...]:
    """Columns that identify a row; open ones may be null or missing."""
    return tuple(Column(name, holds, identifies=True, nullable=open, optional=open) for name in names)


def _measured(name: str) -> tuple[Column, ...]:
    return (Column(name, measured=True, nullable=True),)


def _details(*names: str, holds: type[float | str] = float) -> tuple[Column, ...]:
    """Columns that a file may lack."""
    return tuple(Column(name, holds, nullable=True, optional=True) for name in names)


_WHOLE_FILE = ("model", "stage", "seed")
_OF_MODEL = _keys("model", holds=str, open=True)
_OF_SCHEME = _keys("scheme", holds=str)
_OF_RUN = _keys("stage", holds=str, open=True) + _keys("seed", open=True)
_MODEL = _OF_MODEL + _OF_SCHEME + _OF_RUN
_NOTE = _details("note", holds=str)
_LOSSES = (
    _MODEL
    + _keys("protocol", holds=str)
    + _keys("length")
    + _measured("loss")
    + _details("perplexity", "loss_low", "loss_high", "tokens", "windows")
    + _NOTE
)

COMPARISON = Kind("comparison", "compare", "lengths", _LOSSES, "loss by length", of_weights=False)
LENGTHS = Kind("loss-by-length", "lengths", "lengths", _LOSSES, "loss by length")
POSITIONS = Kind(
    name="loss-by-position",
    file="positions",
    family="positions",
    columns=_MODEL + _keys("length", "position_from", "position_to") + _measured("loss") + _details("tokens") + _NOTE,
    measures="loss by position",
)
PASSKEY = Kind(
    name="passkey",
    file="passkey",
    family="passkey",
    columns=_MODEL
    + _keys("length", "depth")
    + _measured("correct")
    + _details("exact", "log_probability", "trials", "chance")
    + _NOTE,
    measures="passkey",
)
RETRIEVAL = Kind(
    name="retrieval",
    file="retrieval",
    family="retrieval",
    columns=_MODEL
    + _keys("length")
    + _keys("metric", holds=str)
    + _measured("value")
    + _details("low", "high", "queries")
    + _NOTE,
    measures="retrieval",
)
BENCH = Kind(
    name="bench",
    file="bench",
    family="bench",
    columns=_OF_MODEL
    + _OF_SCHEME
    + _keys("device", "dtype", "backend", holds=str, open=True)
    + _keys("mode", holds=str)
    + _keys("length")
    + _measured("time_ratio")
    + _details("time_ratio_low", "time_ratio_high", "memory_ratio", "repeats")
    + _NOTE,
    measures="time and memory",
    of_weights=False,
    by_texts=False,
)
BIASES = Kind(
    name="biases",
    file="biases",
    family="biases",
    columns=_MODEL
    + _keys("layer", "head", open=True)
    + (Column("distance", identifies=True, nullable=True),)
    + _measured("value")
    + _keys("quantity", holds=str, open=True)
    + _NOTE,
    measures="bias by distance",
)

KINDS = {kind.name: kind for kind in (COMPARISON, LENGTHS, POSITIONS, PASSKEY, RETRIEVAL, BENCH, BIASES)}
"""By name. A gap is a row without what is measured, and a note that says why."""
FAMILIES = tuple(dict.fromkeys((LENGTHS.family, AGREEMENT, *(kind.family for kind in KINDS.values()))))
"""What figures are made of, in the order of a report."""

"""The kinds of results: the columns of each kind, their types, which may be missing, and which identify a row.

A new kind of measurement needs an entry here, code that measures it, and a figure, which `reporting.figures.draws`
registers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT_VERSION = 1
STOCK, CONTROL = "stock", "control"
"""The stock model, and its control: the stock model trained on the tokens that the swapped models were healed on."""
SWAPPED_STAGES = ("swapped", "calibrated", "healed")
STAGES = (STOCK, *SWAPPED_STAGES, CONTROL)
"""Stages of a model before a measurement."""
AGREEMENT = "agreement"
"""The protocol whose loss is 1 − the mean cosine to the stock model's embeddings, and the family of its rows."""

KEY_TOKENS = "key-tokens"
"""The protocol of the loss of key tokens; see `hf_posswap.evaluation.key_token_choice`."""


@dataclass(frozen=True)
class ProtocolWords:
    """The wording of a protocol of losses by length.

    Attributes:
        title: title of its panel in a figure.
        told: the protocol within a sentence.
        quantity: the measured quantity, before `told` in a heading.
    """

    title: str
    told: str
    quantity: str = "Perplexity"

    @property
    def heading(self) -> str:
        """Heading of a table."""
        return f"{self.quantity}, {self.told}"


PROTOCOL_WORDS = {
    "windows": ProtocolWords("Non-overlapping windows", "non-overlapping windows"),
    "same-targets": ProtocolWords(
        "Same target tokens, ever longer context", "the same target tokens with ever longer context"
    ),
    KEY_TOKENS: ProtocolWords(
        "Key tokens, ever longer context", "key tokens alone, which the stock model predicts better from long context"
    ),
    "sliding": ProtocolWords("Sliding windows", "windows that slide by a stride"),
    "masked": ProtocolWords(
        "Same masked tokens at every length", "the same masked tokens at every length", "Masked-token perplexity"
    ),
    AGREEMENT: ProtocolWords(
        "Mean cosine of text embeddings",
        "windows of each length",
        "Mean cosine of text embeddings to the stock model's",
    ),
}
"""The wording of each protocol, in the order of tables and figures."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the rows of a kind.

    Attributes:
        name: the column's name.
        holds: float for all numbers, including integers, or str.
        identifies: whether the column identifies a row. Rows that are equal in all these columns are the same row.
        measured: whether the column holds the measured value. Equal rows must agree in it. A row in which it is null is
            a gap, whose note gives the reason.
        nullable: whether the value may be null; a measured value always may be.
        optional: whether the column may be missing, as in files from before the column existed.
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
        name: the kind's name in files.
        file: name of its files, without suffix.
        family: name of the family. Kinds of one family have the same columns, and are drawn in the same figure.
        columns: columns of its rows, in the order of the CSV. If model, stage or seed is not among them, it is the same
            for the whole file.
        measures: the measured quantity, in words.
        of_weights: whether it measures the weights of the named model, not models that the command swaps itself.
        by_texts: whether the measured value depends on the texts.
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
        """Return the values of the identifying columns; rows with equal values are the same row."""
        own = (column.name for column in self.columns if column.identifies)
        return tuple(str(row.get(name)) for name in dict.fromkeys((*_WHOLE_FILE, *own)))


def _keys(*names: str, holds: type[float | str] = float, open: bool = False) -> tuple[Column, ...]:
    """Return columns that identify a row; with `open` they may be null or missing."""
    return tuple(Column(name, holds, identifies=True, nullable=open, optional=open) for name in names)


def _measured(name: str) -> tuple[Column, ...]:
    return (Column(name, measured=True, nullable=True),)


def _details(*names: str, holds: type[float | str] = float) -> tuple[Column, ...]:
    """Return columns that may be missing in a file."""
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
RULER = Kind(
    name="ruler",
    file="ruler",
    family="ruler",
    columns=_MODEL
    + _keys("length")
    + _keys("task", holds=str)
    + _measured("score")
    + _details("log_probability", "chance_log_probability", "gain", "gain_low", "gain_high", "trials")
    + _NOTE,
    measures="RULER's tasks",
)
NEEDLES = Kind(
    name="needle-retrieval",
    file="needles",
    family="needle-retrieval",
    columns=_MODEL
    + _keys("length")
    + _keys("task", "metric", holds=str)
    + _measured("value")
    + _details("low", "high", "queries", "chance")
    + _NOTE,
    measures="retrieval of needles",
)
SEARCH = Kind(
    name="search",
    file="search",
    family="search",
    columns=_MODEL
    + _keys("protocol", holds=str)
    + (Column("round", identifies=True, nullable=True),)
    + _keys("length")
    + _details("healing_tokens")
    + _measured("loss")
    + _details("perplexity", "loss_low", "loss_high", "tokens", "windows")
    + _NOTE,
    measures="a search for the best scheme",
    of_weights=False,
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

KINDS = {
    kind.name: kind
    for kind in (COMPARISON, LENGTHS, SEARCH, POSITIONS, PASSKEY, RULER, RETRIEVAL, NEEDLES, BENCH, BIASES)
}
"""Kinds by name. A gap is a row without a measured value, and with a note that gives the reason."""
FAMILIES = tuple(dict.fromkeys((LENGTHS.family, AGREEMENT, *(kind.family for kind in KINDS.values()))))
"""Families of kinds in the order of their figures in a report."""

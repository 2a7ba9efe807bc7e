"""The Python API of the measurements: functions that return pandas data frames with a row for each measured value."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ParamSpec

from hf_posswap.evaluation.document_retrieval import RetrievalRow, retrieval_rows
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.masked import masked_loss_rows
from hf_posswap.evaluation.needle_retrieval import NeedleRow, needle_rows
from hf_posswap.evaluation.passkey_retrieval import PasskeyRow, passkey_rows
from hf_posswap.evaluation.perplexity import LengthRow, perplexity_rows
from hf_posswap.evaluation.positions import PositionRow, position_rows
from hf_posswap.evaluation.ruler import RulerRow, ruler_rows

if TYPE_CHECKING:
    import pandas

Parameters = ParamSpec("Parameters")


def to_frame(rows: Sequence[Any], row_type: type[Any]) -> "pandas.DataFrame":
    """Return rows, instances of one dataclass, as a pandas data frame with a column for each of its fields.

    Raises:
        EvaluationError: pandas is not installed.
    """
    pandas = _pandas()
    return pandas.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(row_type)])


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise EvaluationError('pandas is not installed. Install it with pip install "hf_posswap[evaluate]".') from error
    return pandas


def _framed(
    name: str, row_type: type[Any], measure: Callable[Parameters, Sequence[Any]]
) -> "Callable[Parameters, pandas.DataFrame]":
    """Return `measure` under another name, with its rows converted to a data frame."""

    @functools.wraps(measure)
    def framed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> "pandas.DataFrame":
        _pandas()  # raise its error before a long measurement
        return to_frame(measure(*args, **kwargs), row_type)

    framed.__name__ = framed.__qualname__ = name
    signature = inspect.signature(measure).replace(return_annotation="pandas.DataFrame")
    vars(framed)["__signature__"] = signature  # otherwise help() shows the return type of `measure`, a list
    columns = ", ".join(field.name for field in fields(row_type))
    framed.__doc__ = f"{measure.__doc__}\nThe rows are those of a pandas data frame with the columns {columns}.\n"
    return framed


perplexity_by_length = _framed("perplexity_by_length", LengthRow, perplexity_rows)
loss_by_position = _framed("loss_by_position", PositionRow, position_rows)
passkey = _framed("passkey", PasskeyRow, passkey_rows)
masked_loss_by_length = _framed("masked_loss_by_length", LengthRow, masked_loss_rows)
retrieval = _framed("retrieval", RetrievalRow, retrieval_rows)
ruler_by_length = _framed("ruler_by_length", RulerRow, ruler_rows)
needles = _framed("needles", NeedleRow, needle_rows)

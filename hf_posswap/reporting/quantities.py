"""The quantity that is drawn for a loss by length: perplexity, or the embeddings' cosine to the stock model's."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_posswap.reporting.figures import Axis, Scale, Value, number
from hf_posswap.reporting.lines import exponential, interval
from hf_posswap.results.kinds import AGREEMENT
from hf_posswap.results.points import Point


def cosine(loss: Value) -> Value:
    """Return the cosine of a loss of agreement, 1 − loss."""
    return None if loss is None else 1.0 - loss


@dataclass(frozen=True)
class Quantity:
    """A way to show losses.

    Attributes:
        subject: the quantity's name at the beginning of a title.
        unit: title of the vertical axis.
        scale: scale of the vertical axis.
        shown: function from a loss to the drawn value.
        loss_unit: unit of the loss in tables; empty: tables have no loss, because it adds no information.
    """

    subject: str
    unit: str
    scale: Scale
    shown: Callable[[Value], Value]
    loss_unit: str = ""

    @property
    def axis(self) -> Axis:
        """The vertical axis."""
        return Axis(self.unit, self.scale)

    def interval(self, point: Point) -> str:
        """Return a point with its interval, as text."""
        return interval(*(self.shown(value) for value in (point.y, point.low, point.high)))

    def hover(self, point: Point) -> str:
        """Return the hover text of a point."""
        text = f"{self.unit} {self.interval(point)}"
        return f"{text}, loss {number(point.y)} {self.loss_unit}" if self.loss_unit else text


PERPLEXITY = Quantity("Perplexity", "perplexity", "log", exponential, "nats")
MASKED = Quantity("Masked-token perplexity", "perplexity", "log", exponential, "nats")
COSINE = Quantity("Agreement with the stock model's embeddings", "cosine", "linear", cosine)


def quantity_of(rows: Iterable[Mapping[str, Any]]) -> Quantity:
    """Return the quantity to draw for rows of one family."""
    protocols = {row["protocol"] for row in rows}
    if protocols == {AGREEMENT}:
        return COSINE
    return MASKED if protocols == {"masked"} else PERPLEXITY

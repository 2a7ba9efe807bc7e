"""What is drawn of a loss by length: perplexity, or how far embeddings agree with the stock model's."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_posswap.reporting.figures import Axis, Scale, Value, number
from hf_posswap.reporting.lines import exponential, interval
from hf_posswap.results.kinds import AGREEMENT
from hf_posswap.results.points import Point


def cosine(loss: Value) -> Value:
    """Return the cosine that a loss of agreement stands for."""
    return None if loss is None else 1.0 - loss


@dataclass(frozen=True)
class Quantity:
    """A way to show losses.

    Attributes:
        subject: what figures are of, at the beginning of a title.
        unit: what the vertical axis shows.
        scale: of the axis.
        shown: turns a loss into what is shown.
        loss_unit: of the loss in tables; empty: the loss says nothing more.
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
        """Return a point in words."""
        text = f"{self.unit} {self.interval(point)}"
        return f"{text}, loss {number(point.y)} {self.loss_unit}" if self.loss_unit else text


PERPLEXITY = Quantity("Perplexity", "perplexity", "log", exponential, "nats")
MASKED = Quantity("Masked-token perplexity", "perplexity", "log", exponential, "nats")
COSINE = Quantity("Agreement with the stock model's embeddings", "cosine", "linear", cosine)


def quantity_of(rows: Iterable[Mapping[str, Any]]) -> Quantity:
    """Return how to show rows of one family."""
    protocols = {row["protocol"] for row in rows}
    if protocols == {AGREEMENT}:
        return COSINE
    return MASKED if protocols == {"masked"} else PERPLEXITY

"""From tidy rows to curves: one for each scheme and stage, over all seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_posswap.reporting.colours import STOCK
from hf_posswap.reporting.quantities import AGREEMENT

STAGE_ORDER = (STOCK, "control", "swapped", "calibrated", "healed")


@dataclass(frozen=True)
class Point:
    """One length of a curve.

    Attributes:
        length: tokens read at once.
        value: the mean over seeds: perplexity, exp of the mean loss, or of agreement the cosine. None where nothing
            could be measured, see `note`.
        spread: half the range of the values over seeds; None with one seed.
        note: why there is no value.
    """

    length: int
    value: float | None
    spread: float | None
    note: str


@dataclass(frozen=True)
class Curve:
    """A scheme at one stage, by length, measured by one protocol."""

    scheme: str
    stage: str
    points: tuple[Point, ...]

    @property
    def measured(self) -> list[Point]:
        """The points with a value."""
        return [point for point in self.points if point.value is not None]


def curves_of(rows: Sequence[Mapping[str, Any]], protocol: str) -> list[Curve]:
    """Return the curves of one protocol, scheme by scheme in the order of the rows, and stage by stage."""
    own = [row for row in rows if row["protocol"] == protocol]
    schemes = list(dict.fromkeys(row["scheme"] for row in own))
    stages = sorted({row["stage"] for row in own}, key=STAGE_ORDER.index)
    curves = []
    for scheme in schemes:
        for stage in stages:
            points = [row for row in own if (row["scheme"], row["stage"]) == (scheme, stage)]
            if points:
                lengths = sorted({row["length"] for row in points})
                by_length = [_point([row for row in points if row["length"] == length]) for length in lengths]
                curves.append(Curve(scheme, stage, tuple(by_length)))
    return curves


def final_curves(curves: Sequence[Curve]) -> list[Curve]:
    """Return, of each scheme, the curve of the last stage that has been measured; stock and control stay apart."""
    last: dict[str, Curve] = {}
    for curve in curves:
        key = curve.stage if curve.scheme == STOCK else curve.scheme
        if curve.measured or key not in last:
            last[key] = curve
    return list(last.values())


def _point(rows: Sequence[Mapping[str, Any]]) -> Point:
    """Return the mean over the seeds of one length."""
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    length = rows[0]["length"]
    if not losses:
        return Point(length, None, None, rows[0]["note"])
    shown = _cosine if rows[0]["protocol"] == AGREEMENT else _exponential
    mean = shown(math.fsum(losses) / len(losses))
    spread = abs(shown(max(losses)) - shown(min(losses))) / 2 if len(losses) > 1 else None
    return Point(length, mean, spread, "")


def _exponential(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _cosine(loss: float) -> float:
    return 1.0 - loss

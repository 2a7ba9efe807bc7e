"""Turns rows into points and curves: merges seeds, and keeps intervals and the notes of gaps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_posswap.results.kinds import CONTROL, STAGES, STOCK, SWAPPED_STAGES, Row


@dataclass(frozen=True)
class Point:
    """The measured values at one x, over all seeds.

    Attributes:
        x: the x value, such as a length.
        y: mean of the values, or None if there is none.
        low: lowest lower end of the intervals, or None. Without intervals, the lowest of several values.
        high: highest upper end of the intervals, or None. Without intervals, the highest of several values.
        seeds: number of seeds.
        note: reason why there is no value.
    """

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    note: str = ""


@dataclass(frozen=True)
class LengthCurve:
    """The points of one scheme in one stage by one protocol, by length."""

    scheme: str
    stage: str
    points: tuple[Point, ...]


def key_of(row: Mapping[str, Any]) -> str:
    """Return the key that determines how a row is drawn: "stock", "control", or its scheme."""
    stage = str(row["stage"])
    return stage if stage in (STOCK, CONTROL) else str(row["scheme"])


def by_key(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each scheme; the stock model comes first, its control second."""
    found: dict[str, list[Row]] = {STOCK: [], CONTROL: []}
    for row in rows:
        found.setdefault(key_of(row), []).append(row)
    return {key: own for key, own in found.items() if own}


def swapped_stages(rows: Iterable[Row]) -> list[str]:
    """Return the stages of swapped models that occur, in order."""
    found = {row["stage"] for row in rows if row["stage"] not in (STOCK, CONTROL)}
    return [stage for stage in SWAPPED_STAGES if stage in found] + sorted(found - set(STAGES))


def points(rows: Sequence[Row], value: str, low: str = "", high: str = "", x: str = "length") -> list[Point]:
    """Return the points of one line, by ascending x.

    Args:
        rows: rows of one scheme in one stage.
        value: column of the values.
        low: column of the lower ends of intervals; those of several seeds are merged.
        high: column of the upper ends.
        x: column of the x values.
    """
    places: dict[float, list[Row]] = {}
    for row in rows:
        places.setdefault(row[x], []).append(row)
    return [_point(place, places[place], value, low, high) for place in sorted(places)]


def curves_of(rows: Iterable[Row], protocol: str) -> list[LengthCurve]:
    """Return the losses by one protocol as curves, scheme by scheme in the order of the rows, and stage by stage.

    The interval of a point covers the values of its seeds; with one seed there is no interval.
    """
    own = [row for row in rows if row["protocol"] == protocol]
    stages = [STOCK, CONTROL, *swapped_stages(own)]
    found: dict[str, dict[str, list[Row]]] = {}
    for row in own:
        found.setdefault(row["scheme"], {}).setdefault(row["stage"], []).append(row)
    return [
        LengthCurve(scheme, stage, tuple(points(of_scheme[stage], "loss")))
        for scheme, of_scheme in found.items()
        for stage in stages
        if stage in of_scheme
    ]


def _point(place: float, rows: Sequence[Row], value: str, low: str, high: str) -> Point:
    known = [row for row in rows if row.get(value) is not None]
    values = [row[value] for row in known]
    lows = [row[low] for row in known if row.get(low) is not None]
    highs = [row[high] for row in known if row.get(high) is not None]
    several = len(values) > 1
    return Point(
        x=place,
        y=sum(values) / len(values) if values else None,
        low=min(lows) if lows else min(values) if several else None,
        high=max(highs) if highs else max(values) if several else None,
        seeds=len({str(row["seed"]) for row in known}),
        note="" if known else next((row["note"] for row in rows if row["note"]), "not measured"),
    )

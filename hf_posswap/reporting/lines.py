"""Turns points into the content of figures: lines, intervals as text, and sentences on gaps."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from hf_posswap.reporting.figures import Series, Value, number, plain
from hf_posswap.results.kinds import STOCK
from hf_posswap.results.points import Point

SEVERAL_SEEDS = (
    "Several seeds: the line is their mean, the band runs from the lowest lower end to the highest upper end."
)


def exponential(value: Value) -> Value:
    """Return exp(value), the perplexity of a loss in nats; None if the value is None or the result overflows."""
    if value is None:
        return None
    try:
        return math.exp(value)
    except OverflowError:
        return None


def interval(value: Value, low: Value, high: Value) -> str:
    """Return a value with its interval, as text."""
    if value is None or low is None or high is None:
        return number(value)
    return f"{number(value)} ({number(min(low, high))}–{number(max(low, high))})"


def in_order(low: Value, high: Value) -> tuple[Value, Value]:
    """Return the ends of an interval in ascending order; a decreasing transform of the loss exchanges them."""
    return (high, low) if low is not None and high is not None and low > high else (low, high)


def ending(line: Sequence[Point]) -> str:
    """Return why a line stops before its last x value; empty if it does not."""
    known = [index for index, point in enumerate(line) if point.y is not None]
    if not known or known[-1] == len(line) - 1:
        return ""
    return line[known[-1] + 1].note


def gap_sentences(lines: Iterable[tuple[str, Sequence[Point]]], place: str = "length") -> list[str]:
    """Return sentences on the x values that each scheme lacks; one sentence for each reason.

    Args:
        lines: pairs of a scheme's label and its points.
        place: the name of x.
    """
    found: dict[tuple[str, str], dict[float, None]] = {}
    for label, line in lines:
        for point in line:
            if point.y is None:
                found.setdefault((label, point.note), {})[point.x] = None
    merged: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    for (label, note), places in found.items():
        merged.setdefault((note, tuple(places)), []).append(label)
    return [
        f"{', '.join(labels)}: nothing at {place} {', '.join(plain(p) for p in places)} ({one_line(note)})."
        for (note, places), labels in merged.items()
    ]


def one_line(text: str, limit: int = 160) -> str:
    """Return the first line of a text, cut to at most `limit` characters."""
    first = (text.splitlines() or [""])[0].rstrip(".")
    return first if len(first) <= limit else first[: limit - 1] + "…"


def line_series(
    key: str,
    line: Sequence[Point],
    hover: Callable[[Point], str],
    shown: Callable[[Value], Value] = lambda value: value,
) -> Series:
    """Return a scheme's points as a line; the stock model's line is a background line.

    Args:
        key: the scheme's key, which is also its label.
        line: the points.
        hover: function that returns a point's hover text.
        shown: function from a measured value to the drawn one, such as from a loss to a perplexity.
    """
    ends = [in_order(shown(point.low), shown(point.high)) for point in line]
    return Series(
        key=key,
        label=key,
        x=tuple(point.x for point in line),
        y=tuple(shown(point.y) for point in line),
        low=tuple(low for low, _ in ends),
        high=tuple(high for _, high in ends),
        hover=tuple(map(hover, line)),
        end=ending(line),
        background=key == STOCK,
    )


def marked_if_equal(series: Sequence[Series]) -> tuple[Series, ...]:
    """Return the series; a series that covers an earlier, equal one names it."""
    seen: dict[tuple[tuple[float, str], ...], str] = {}
    result = []
    for one in series:
        shape = tuple((one.x[i], f"{one.y[i]:.5g}") for i in one.known())
        other = seen.setdefault(shape, one.label)
        result.append(one if other == one.label or not shape else replace(one, equal=other))
    return tuple(result)


def any_several_seeds(lines: Iterable[Sequence[Point]]) -> bool:
    """Return whether any point is a mean over more than one seed."""
    return any(point.seeds > 1 for line in lines for point in line)

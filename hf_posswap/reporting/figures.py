"""What a figure shows, before anything is drawn: the one description from which page and image are both made.

A figure is a row of panels with what a reader needs to judge it: caption, gaps, provenance and the numbers as a table.
A panel holds lines, bars or a heat map. Nothing here knows matplotlib or plotly.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hf_posswap.results.groups import Group

Scale = Literal["linear", "log", "category"]
Value = float | None
"""None is a gap."""
BEYOND_AXIS = 1.5
"""A guide further out than this many times the end of the axis is pointed at instead of drawn."""


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Attributes:
        title: what it measures, with its unit.
        scale: linear, log, or category (values are then 0, 1, … with `labels`).
        ticks: where labels stand; empty: chosen when drawn.
        labels: the text of each tick.
    """

    title: str
    scale: Scale = "linear"
    ticks: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """The values of one scheme in a panel of lines or bars.

    Attributes:
        key: the scheme, "stock" or "control": decides the look, and what is toggled together.
        label: its name in the legend.
        x: along the axis.
        y: as many values.
        low: lower ends of the intervals; empty if there are none.
        high: upper ends.
        hover: what is said of each point.
        end: why the line stops before the last point, if it does.
        hatched: bars of a scheme in a second way, beside those in the first.
        background: drawn wide and pale below the others, so that a line equal to it shows on top.
    """

    key: str
    label: str
    x: tuple[float, ...]
    y: tuple[Value, ...]
    low: tuple[Value, ...] = ()
    high: tuple[Value, ...] = ()
    hover: tuple[str, ...] = ()
    end: str = ""
    hatched: bool = False
    background: bool = False

    def known(self) -> list[int]:
        """Indices of the points that were measured."""
        return [index for index, value in enumerate(self.y) if value is not None]

    def banded_runs(self) -> list[list[int]]:
        """Runs of neighbouring points that have an interval."""
        runs: list[list[int]] = [[]]
        for index in range(len(self.x) if self.low else 0):
            if self.low[index] is None or self.high[index] is None or self.y[index] is None:
                runs.append([])
            else:
                runs[-1].append(index)
        return [run for run in runs if run]


@dataclass(frozen=True)
class Guide:
    """A thin line across a panel, at a value of one axis, such as the train length or chance.

    Attributes:
        axis: the axis on which `value` lies.
        value: where.
        text: what it is.
    """

    axis: Literal["x", "y"]
    value: float
    text: str

    def side(self, axis: Axis) -> Literal["inside", "before", "after"]:
        """Return whether the value lies on the axis or far off one of its ends, where it is only pointed to."""
        if not axis.ticks or self.axis == "y":
            return "inside"
        if self.value > BEYOND_AXIS * axis.ticks[-1]:
            return "after"
        return "before" if self.value * BEYOND_AXIS < axis.ticks[0] else "inside"


@dataclass(frozen=True)
class LinePanel:
    """Lines with intervals."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    guides: tuple[Guide, ...] = ()

    def extent(self) -> list[float]:
        """Return every value that is drawn: lines, ends of bands, and level guides."""
        values = [value for one in self.series for value in (*one.y, *(() if one.background else one.low + one.high))]
        values += [guide.value for guide in self.guides if guide.axis == "y"]
        return [value for value in values if value is not None]


@dataclass(frozen=True)
class BarPanel:
    """Bars side by side at each category, with intervals."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    guides: tuple[Guide, ...] = ()


@dataclass(frozen=True)
class ColourAxis:
    """The meaning of colours in a heat map.

    Attributes:
        title: what they measure, with its unit.
        colours: from low to high, as #RRGGBB, evenly spread.
        low: value of the first colour.
        high: value of the last one; values beyond the ends take the colours at the ends.
    """

    title: str
    colours: tuple[str, ...]
    low: float
    high: float


@dataclass(frozen=True)
class HeatPanel:
    """A heat map of one scheme; the first row of `values` is at the top.

    Attributes:
        title: what is shown.
        key: the scheme, see `Series.key`.
        x: a category axis, whose ticks may be a part of the columns.
        y: a category axis.
        columns: name of each column.
        rows: name of each row.
        values: rows of cells; None is a gap.
        texts: what is written into each cell; empty: nothing.
        colour: the colour axis.
        rules: rows above which a thin line separates groups.
    """

    title: str
    key: str
    x: Axis
    y: Axis
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]
    colour: ColourAxis
    texts: tuple[tuple[str, ...], ...] = ()
    rules: tuple[int, ...] = ()


Panel = LinePanel | BarPanel | HeatPanel


@dataclass(frozen=True)
class Table:
    """The numbers of a figure.

    Attributes:
        columns: headings.
        rows: cells, as text.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of a figure come from; each a list without repetition.

    Attributes:
        models: names of the models measured.
        texts: names of the texts, with their numbers of tokens.
        training: on how much, and how, models were healed.
        seeds: of everything drawn at random.
        commands: what was typed.
        versions: of the packages that decide numbers.
        hardware: processors and accelerators.
        files: names of the result files.
    """

    models: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def summary(self) -> str:
        """Everything but commands and files, as sentences."""
        parts = [
            ("Model", self.models),
            ("Text", self.texts),
            ("Healed on", self.training),
            ("Seed", self.seeds),
            ("", self.versions),
            ("", self.hardware),
        ]
        return " ".join(f"{name + ': ' if name else ''}{'; '.join(items)}." for name, items in parts if items)


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: of its files and of its place in the page: lower-case letters, digits and hyphens.
        title: one line, with the model's name.
        heading: the same without it, for where it is said already.
        variant: what tells this figure from others with the heading, such as the stage.
        panels: from left to right.
        caption: how to read it, in sentences.
        gaps: what is missing, and why; one sentence each.
        table: its numbers.
        provenance: where they come from.
    """

    name: str
    title: str
    heading: str
    variant: str
    panels: tuple[Panel, ...]
    caption: str
    table: Table
    provenance: Provenance
    gaps: tuple[str, ...] = field(default=())

    def schemes(self) -> list[str]:
        """Schemes that occur, in order, without repetition."""
        found: dict[str, None] = {}
        for panel in self.panels:
            found |= dict.fromkeys([panel.key] if isinstance(panel, HeatPanel) else [s.key for s in panel.series])
        return list(found)


Maker = Callable[["Group"], list[Figure]]
makers: dict[str, Maker] = {}
"""What makes the figures of a group, by the group's family."""


def draws(*families: str) -> Callable[[Maker], Maker]:
    """Return a decorator that lets a function make the figures of these families of results."""

    def register(maker: Maker) -> Maker:
        makers.update(dict.fromkeys(families, maker))
        return maker

    return register


def numbered_axis(title: str, values: Iterable[float], scale: Scale = "log") -> Axis:
    """Return an axis with a tick at each of the values."""
    ticks = tuple(sorted(set(values)))
    return Axis(title, scale, ticks, tuple(plain(tick) for tick in ticks))


def log_axis(title: str, values: Iterable[Value]) -> Axis:
    """Return a logarithmic axis for the values, with ticks at round numbers that suit how far they spread."""
    known = [value for value in values if value is not None and value > 0]
    if not known:
        return Axis(title)
    low, high = min(known), max(known)
    for mantissas in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [
            m * 10.0**decade for decade in decades for m in mantissas if low * 0.9 <= m * 10.0**decade <= high * 1.1
        ]
        if len(ticks) >= 4:
            return Axis(title, "log", tuple(ticks), tuple(number(tick) for tick in ticks))
    return Axis(title, "log", *_even_ticks(low, high))


def common_axis(panels: Sequence[LinePanel]) -> tuple[LinePanel, ...]:
    """Return the panels with one logarithmic vertical axis, whose ticks suit them all."""
    values = [value for panel in panels for value in panel.extent()]
    return tuple(replace(panel, y=log_axis(panel.y.title, values)) for panel in panels)


def drawable(panels: Sequence[LinePanel]) -> tuple[LinePanel, ...]:
    """Return the panels that have any value; all of them if none has."""
    found = tuple(panel for panel in panels if any(series.known() for series in panel.series))
    return found or tuple(panels)


def category_axis(title: str, labels: Sequence[str]) -> Axis:
    """Return an axis of categories."""
    return Axis(title, "category", tuple(float(index) for index in range(len(labels))), tuple(labels))


def plain(value: float) -> str:
    """Return a length, distance or the like with all its digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def number(value: Value) -> str:
    """Return a number as a reader wants it: about four digits, thousands marked; a gap as a dash."""
    if value is None:
        return "—"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}"
    return f"{value:.4g}"


def _even_ticks(low: float, high: float) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """About five round numbers at even steps, for an axis that spans little."""
    rough = max(high - low, abs(high) * 1e-3) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
    first = math.floor(low / step)
    ticks = tuple(step * n for n in range(first, math.ceil(high / step) + 1) if step * n > 0)
    return ticks, tuple(number(tick) for tick in ticks)

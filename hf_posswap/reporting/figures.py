"""Describes the content of a figure; `page` and `images` draw it.

A figure is a row of panels with a caption, the gaps, the provenance and the numbers as a table. A panel contains lines,
bars or a heat map. This module does not depend on a package that draws.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hf_posswap.results.groups import Group

Scale = Literal["linear", "log", "category"]
Value = float | None
"""A value; None is a gap."""
BEYOND_AXIS = 1.5
"""A guide beyond the end of the axis by more than this factor is not drawn; an arrow shows its direction."""


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Attributes:
        title: the quantity with its unit.
        scale: linear, log, or category (values are then 0, 1, … with `labels`).
        ticks: values with a label; empty: Vega chooses the ticks.
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
        key: the scheme, "stock" or "control". Series with the same key have the same style and are shown or hidden
            together.
        label: name in the legend; a series has the same label and style in all panels of a figure.
        x: x values.
        y: y values, one for each x.
        low: lower ends of the intervals; empty if there are none.
        high: upper ends of the intervals.
        hover: hover text of each point.
        end: reason why the line stops before the last point, if it does.
        pale: whether bars are pale; this marks the second variant of a scheme.
        background: whether the line is wide, pale and below the others, so that an equal line on it is visible.
        equal: label of an earlier series with the same values; empty if there is none.
    """

    key: str
    label: str
    x: tuple[float, ...]
    y: tuple[Value, ...]
    low: tuple[Value, ...] = ()
    high: tuple[Value, ...] = ()
    hover: tuple[str, ...] = ()
    end: str = ""
    pale: bool = False
    background: bool = False
    equal: str = ""

    @property
    def name(self) -> str:
        """The label; if there is an equal series, followed by its label."""
        return f"{self.label} (= {self.equal})" if self.equal else self.label

    def known(self) -> list[int]:
        """Return the indices of the points with a value."""
        return [index for index, value in enumerate(self.y) if value is not None]

    def banded_runs(self) -> list[list[int]]:
        """Return the runs of adjacent points with an interval, each as a list of indices."""
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
        axis: the axis of `value`.
        value: the value at which the line is drawn.
        text: label of the line.
    """

    axis: Literal["x", "y"]
    value: float
    text: str

    def side(self, axis: Axis) -> Literal["inside", "before", "after"]:
        """Return whether the value is inside the axis, or so far before or after it that only an arrow is drawn."""
        if not axis.ticks or self.axis == "y":
            return "inside"
        if self.value > BEYOND_AXIS * axis.ticks[-1]:
            return "after"
        return "before" if self.value * BEYOND_AXIS < axis.ticks[0] else "inside"


@dataclass(frozen=True)
class _SeriesPanel:
    """The common base class of panels with lines and panels with bars."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    guides: tuple[Guide, ...] = ()

    def extent(self) -> list[float]:
        """Return all y values that are drawn: points, ends of intervals, and horizontal guides."""
        values = [value for one in self.series for value in (*one.y, *(() if one.background else one.low + one.high))]
        values += [guide.value for guide in self.guides if guide.axis == "y"]
        return [value for value in values if value is not None]


@dataclass(frozen=True)
class LinePanel(_SeriesPanel):
    """Lines with intervals."""


@dataclass(frozen=True)
class BarPanel(_SeriesPanel):
    """Bars side by side at each category, with intervals."""


@dataclass(frozen=True)
class ColourAxis:
    """The meaning of colours in a heat map.

    Attributes:
        title: the quantity with its unit.
        colours: colours from low to high, as #RRGGBB, evenly spaced.
        low: value of the first colour.
        high: value of the last colour. Values below `low` have the first colour, values above `high` the last.
    """

    title: str
    colours: tuple[str, ...]
    low: float
    high: float


@dataclass(frozen=True)
class HeatPanel:
    """A heat map of one scheme; the first row of `values` is at the top.

    Attributes:
        title: title of the panel.
        key: the scheme, see `Series.key`.
        x: a category axis; its ticks may be a subset of the columns.
        y: a category axis.
        columns: name of each column.
        rows: name of each row.
        values: rows of cells; None is a gap.
        texts: text in each cell; empty: no text.
        colour: the colour axis.
        rules: indices of rows with a separating line above them.
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
        columns: column headings.
        rows: rows of cells, as text.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Provenance:
    """The origin of a figure's numbers; each attribute is a list without repetition.

    Attributes:
        models: names of the measured models.
        texts: names of the texts, with their numbers of tokens.
        training: the amount and the options of healing.
        seeds: seeds of all random numbers.
        commands: the command lines.
        versions: versions of the packages that affect numbers.
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
        """Return everything except commands and files, as sentences."""
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
        name: name of its files and of its anchor in the page: lower-case letters, digits and hyphens.
        title: title in one line, with the model's name.
        heading: the title without the model's name, for use below a heading with the model's name.
        variant: the property that distinguishes this figure from others with the same heading, such as the stage.
        panels: panels from left to right.
        caption: explanation of the figure, in sentences.
        gaps: missing values with reasons, one sentence each.
        table: the figure's numbers.
        provenance: the origin of the numbers.
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
        """Return the figure's schemes, in order and without repetition."""
        found: dict[str, None] = {}
        for panel in self.panels:
            found |= dict.fromkeys([panel.key] if isinstance(panel, HeatPanel) else [s.key for s in panel.series])
        return list(found)


Maker = Callable[["Group"], list[Figure]]
makers: dict[str, Maker] = {}
"""Functions that make the figures of a group of results, by the family of the results."""


def draws(*families: str) -> Callable[[Maker], Maker]:
    """Return a decorator that registers a function as the maker of figures for these families of results."""

    def register(maker: Maker) -> Maker:
        makers.update(dict.fromkeys(families, maker))
        return maker

    return register


def numbered_axis(title: str, values: Iterable[float], scale: Scale = "log") -> Axis:
    """Return an axis with a tick at each value."""
    ticks = tuple(sorted(set(values)))
    return Axis(title, scale, ticks, tuple(plain(tick) for tick in ticks))


def log_axis(title: str, values: Iterable[Value]) -> Axis:
    """Return a logarithmic axis for the values, with ticks at round numbers that suit their range."""
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
    """Return the panels with a common logarithmic vertical axis, whose ticks suit all of them."""
    values = [value for panel in panels for value in panel.extent()]
    return tuple(replace(panel, y=log_axis(panel.y.title, values)) for panel in panels)


def drawable(panels: Sequence[LinePanel]) -> tuple[LinePanel, ...]:
    """Return the panels that have a value; all panels if none has."""
    found = tuple(panel for panel in panels if any(series.known() for series in panel.series))
    return found or tuple(panels)


def category_axis(title: str, labels: Sequence[str]) -> Axis:
    """Return an axis of categories."""
    return Axis(title, "category", tuple(float(index) for index in range(len(labels))), tuple(labels))


def plain(value: float) -> str:
    """Return a length, distance or similar value as text with all digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def number(value: Value) -> str:
    """Return a number as text with about four digits and thousands separators; a gap is a dash."""
    if value is None:
        return "—"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}"
    return f"{value:.4g}"


def _even_ticks(low: float, high: float) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Return about five round numbers at even steps, for an axis with a small range."""
    rough = max(high - low, abs(high) * 1e-3) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
    first = math.floor(low / step)
    ticks = tuple(step * n for n in range(first, math.ceil(high / step) + 1) if step * n > 0)
    return ticks, tuple(number(tick) for tick in ticks)

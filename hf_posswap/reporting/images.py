"""Draws the description of a figure with matplotlib, as PNG, SVG or PDF.

The files contain no dates and no random names, so the same description gives the same bytes.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.errors import MissingPackageError
from hf_posswap.reporting.colours import Look, looks
from hf_posswap.reporting.figures import Axis, BarPanel, Figure, Guide, HeatPanel, LinePanel, Panel, Series

INK, MUTED, GRID = "#222222", "#666666", "#E4E4E4"
SETTINGS = {
    "text.parse_math": False,  # names come from files, so a $ is not math markup
    "svg.hashsalt": "hf_posswap",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
}
DOTS_PER_INCH = 160
MOST_COMMANDS = 3
NOTE_HEIGHT = 0.11
"""Height of a line of small print, in inches."""
MOST_MARKED = 60
"""Lines with more points than this are thin and have no markers."""


def draw(figure: Figure, path: Path, styles: Mapping[str, Look] | None = None) -> None:
    """Draw a figure into a file; the suffix decides the format (PNG, SVG, PDF).

    Args:
        figure: the figure.
        path: the file to write.
        styles: style of each scheme, to distinguish schemes across several figures. None: `looks` of this figure.
    """
    matplotlib = _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    styles = styles if styles is not None else looks(figure.schemes())
    with matplotlib.rc_context(SETTINGS):
        rows, columns = _grid(figure.panels)
        width, height = _size(figure.panels, rows, columns)
        notes = _notes(figure, width)
        height += NOTE_HEIGHT * notes.count("\n")
        sheet = Sheet(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(sheet)
        grid = sheet.subplots(rows, columns, squeeze=False, sharey=_same_scale(figure.panels))
        places = [place for line in grid for place in line]
        for index, (place, panel) in enumerate(zip(places, figure.panels, strict=False)):
            _draw_panel(place, panel, styles, leftmost=index % columns == 0)
        for place in places[len(figure.panels) :]:
            place.set_axis_off()
        _finish(sheet, figure, places, width)
        if notes:
            sheet.supxlabel(notes, fontsize=6.5, color=MUTED, x=0.012, ha="left")
        metadata = {"Title": figure.title} | ({"Date": None} if path.suffix == ".svg" else {})
        sheet.savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError(
            'images are drawn by matplotlib, which is not installed. Install it with pip install "hf_posswap[report]".'
        ) from error
    return matplotlib


def check_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        MissingPackageError: it is not installed.
    """
    _matplotlib()


def _grid(panels: Sequence[Panel]) -> tuple[int, int]:
    """Return numbers of rows and columns that fill a sheet evenly."""
    count = max(1, len(panels))
    most = 4 if isinstance(panels[0] if panels else None, HeatPanel) and _small(panels) else 3
    rows = -(-count // most)
    return rows, -(-count // rows)


def _small(panels: Sequence[Panel]) -> bool:
    """Return whether the panels are heat maps with few cells."""
    return all(len(panel.values) <= 16 for panel in panels if isinstance(panel, HeatPanel))


def _size(panels: Sequence[Panel], rows: int, columns: int) -> tuple[float, float]:
    """Return width and height of the sheet in inches."""
    if panels and isinstance(panels[0], HeatPanel):
        tallest = max(len(panel.values) for panel in panels if isinstance(panel, HeatPanel))
        wide = 2.9 if _small(panels) else 4.4
        return max(6.4, wide * columns + 1.4), min(9.0, max(2.2, 0.09 * tallest + 1.2)) * rows + 1.7
    if panels and isinstance(panels[0], BarPanel):
        return max(7.6, 4.6 * columns + 1.9), 3.3 * rows + 1.5
    return max(7.6, 4.6 * columns + 1.9), (3.3 if rows > 1 else 3.5) * rows + 1.5


def _same_scale(panels: Sequence[Panel]) -> Any:
    """Return matplotlib's `sharey`: panels of lines or bars of one quantity share their vertical axis within a row."""
    titles = {panel.y.title for panel in panels if not isinstance(panel, HeatPanel)}
    return "row" if len(titles) == 1 and not any(isinstance(panel, HeatPanel) for panel in panels) else False


def _finish(sheet: Any, figure: Figure, places: Sequence[Any], width: float) -> None:
    """Add the legend or colour bar, and the title."""
    if figure.panels and isinstance(figure.panels[0], HeatPanel):
        images = [place.images[0] for place in places if place.images]
        bar = sheet.colorbar(images[0], ax=list(places), shrink=0.85, pad=0.015, aspect=28)
        bar.set_label(figure.panels[0].colour.title, color=INK, fontsize=9)
        bar.ax.tick_params(colors=MUTED, labelsize=8)
        bar.outline.set_visible(False)
    else:
        entries: dict[str, Any] = {}
        for place in places:
            for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        if entries:
            sheet.legend(
                list(entries.values()), list(entries), loc="outside right center", frameon=False, labelcolor=INK,
                handlelength=3.2, fontsize=9,
            )  # fmt: skip
    sheet.suptitle(textwrap.fill(figure.title, int(width * 9.5)), color=INK, fontsize=12.5, x=0.012, ha="left")


def _notes(figure: Figure, width: float) -> str:
    """Return the small print of an image: gaps, the origin of the numbers, and the first commands."""
    commands = [f"$ {line}" for line in figure.provenance.commands]
    if len(commands) > MOST_COMMANDS:
        more = len(commands) - MOST_COMMANDS + 1
        commands = [*commands[: MOST_COMMANDS - 1], f"… and {more} more commands, which the report lists."]
    notes = [*figure.gaps, figure.provenance.summary(), *commands]
    return "\n".join(textwrap.fill(note, int(width * 21)) for note in notes if note)


def _draw_panel(place: Any, panel: Panel, styles: Mapping[str, Look], leftmost: bool) -> None:
    if isinstance(panel, HeatPanel):
        _draw_heat(place, panel, leftmost)
        return
    if isinstance(panel, BarPanel):
        _draw_bars(place, panel, styles)
    else:
        _draw_lines(place, panel, styles)
    for axis, which in ((panel.x, "x"), (panel.y, "y")):
        _set_axis(place, axis, which)
    for guide in panel.guides:
        _draw_guide(place, guide, panel)
    place.set_title(textwrap.fill(panel.title, 38), fontsize=10, color=INK, loc="left", pad=14)
    place.set_xlabel(panel.x.title, color=INK, fontsize=9)
    if leftmost:
        place.set_ylabel(f"{panel.y.title}{' (log)' if panel.y.scale == 'log' else ''}", color=INK, fontsize=9)
    place.grid(color=GRID, linewidth=0.8, axis="y" if isinstance(panel, BarPanel) else "both")
    place.set_axisbelow(True)
    place.tick_params(colors=MUTED, labelsize=8.5)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        place.spines[side].set_color("#BBBBBB")


def _set_axis(place: Any, axis: Axis, which: str) -> None:
    """Give one axis of a panel its scale and ticks."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    target = place.xaxis if which == "x" else place.yaxis
    if axis.scale == "log":
        getattr(place, f"set_{which}scale")("log")
    if axis.ticks:
        names = dict(zip(axis.ticks, axis.labels, strict=True))
        target.set_ticks(list(names))
        # Label ticks by value: a panel that shares its axis may have ticks of another panel.
        target.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, f"{value:g}")))
    if axis.scale == "category" and axis.ticks:
        getattr(place, f"set_{which}lim")(axis.ticks[0] - 0.5, axis.ticks[-1] + 0.5)
    target.set_minor_locator(NullLocator())


def _draw_lines(place: Any, panel: LinePanel, styles: Mapping[str, Look]) -> None:
    """Draw lines with intervals; each further line is thinner, so that lines at the same place are all visible."""
    foreground = [series for series in panel.series if not series.background]
    for series in panel.series:
        # A gap breaks a line, except between stages: a scheme without parameters has no calibrated stage.
        shown = series.known() if panel.x.scale == "category" else range(len(series.x))
        x = [series.x[i] for i in shown]
        y = [math.nan if series.y[i] is None else series.y[i] for i in shown]
        look = styles[series.key]
        if series.background:
            place.plot(
                x, y, color=look.colour, alpha=0.28, linewidth=8, solid_capstyle="round", label=series.label, zorder=2
            )
            continue
        order = foreground.index(series) / max(1, len(foreground))
        place.plot(
            x,
            y,
            color=look.colour,
            linestyle=look.line,
            linewidth=3.2 - 2.0 * order if len(x) <= MOST_MARKED else 1.1,
            marker=look.marker if len(x) <= MOST_MARKED else None,
            markersize=(8 - 4 * order) * (1 if len(x) <= 12 else 0.6),
            markerfacecolor="white" if look.hollow else look.colour,
            label=series.label,
            zorder=3,
        )
        for run in series.banded_runs():
            place.fill_between(
                [series.x[i] for i in run],
                [series.low[i] for i in run],
                [series.high[i] for i in run],
                color=look.colour,
                alpha=0.1,
                linewidth=0,
                zorder=1,
            )
    for series in panel.series:
        known = series.known()
        if series.end and known:
            place.plot(
                series.x[known[-1]], series.y[known[-1]], "x", color=styles[series.key].colour, markersize=10,
                markeredgewidth=2, zorder=4,
            )  # fmt: skip


def _draw_bars(place: Any, panel: BarPanel, styles: Mapping[str, Look]) -> None:
    """Draw bars side by side, with whiskers; variants of a scheme are hatched."""
    count = max(1, len(panel.series))
    width = 0.84 / count
    for number, series in enumerate(panel.series):
        known = series.known()
        look = styles[series.key]
        x = [series.x[i] + (number - (count - 1) / 2) * width for i in known]
        y = [series.y[i] for i in known]
        place.bar(
            x, y, width * 0.92, color=look.colour, label=series.label, zorder=2,
            hatch="////" if series.hatched else "//" if look.hollow else None, edgecolor="white", linewidth=0,
        )  # fmt: skip
        whiskers = [i for i in known if series.low and series.low[i] is not None and series.high[i] is not None]
        if whiskers:
            place.errorbar(
                [series.x[i] + (number - (count - 1) / 2) * width for i in whiskers],
                [series.y[i] for i in whiskers],
                [_reach(series, whiskers, side) for side in ("low", "high")],
                fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.5, zorder=3,
            )  # fmt: skip


def _reach(series: Series, places: Sequence[int], side: str) -> list[float]:
    """Return the lengths of whiskers from the value, down or up."""
    ends = series.low if side == "low" else series.high
    return [abs(float(ends[i] or 0.0) - float(series.y[i] or 0.0)) for i in places]


def _draw_guide(place: Any, guide: Guide, panel: LinePanel | BarPanel) -> None:
    """Draw a guide, or a pointer in its direction if it is far outside the axis."""
    dashes = {"color": MUTED, "linewidth": 1.1, "linestyle": (0, (4, 3)), "zorder": 1}
    note: dict[str, Any] = {"fontsize": 7.5, "color": MUTED, "textcoords": "offset points"}
    if guide.axis == "y":
        place.axhline(guide.value, **dashes)
        note |= {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center"}
        place.annotate(guide.text, (1, guide.value), xytext=(3, 0), **note)
        return
    text, position, side = guide.text, guide.value, guide.side(panel.x)
    if side == "after":
        text, position, align = f"{text} →", panel.x.ticks[-1], "right"
    elif side == "before":
        text, position, align = f"← {text}", panel.x.ticks[0], "left"
    else:
        place.axvline(position, **dashes)
        align = "center"
        if panel.x.ticks:
            align = "left" if position <= panel.x.ticks[0] else "right" if position >= panel.x.ticks[-1] else align
    note |= {"xycoords": ("data", "axes fraction"), "ha": align, "va": "bottom"}
    place.annotate(text, (position, 1), xytext=(0, 3), **note)


def _draw_heat(place: Any, panel: HeatPanel, leftmost: bool) -> None:
    """Draw a heat map; gaps are hatched."""
    import numpy
    from matplotlib.colors import LinearSegmentedColormap

    cells = numpy.array([[numpy.nan if value is None else value for value in line] for line in panel.values])
    colours = LinearSegmentedColormap.from_list("cells", list(panel.colour.colours))
    place.set_facecolor("#EEEEEE")
    place.imshow(cells, cmap=colours, vmin=panel.colour.low, vmax=panel.colour.high, aspect="auto", rasterized=True)
    for row, line in enumerate(panel.texts):
        for column, text in enumerate(line):
            share = (float(panel.values[row][column] or 0.0) - panel.colour.low) / (
                panel.colour.high - panel.colour.low
            )
            place.text(
                column, row, text or "—", ha="center", va="center", fontsize=7.5,
                color=(INK if share > 0.55 else "white") if text else MUTED,
            )  # fmt: skip
    for row in panel.rules:
        place.axhline(row - 0.5, color="#999999", linewidth=0.5)
    place.set_xticks(panel.x.ticks, panel.x.labels)
    place.set_yticks(panel.y.ticks, panel.y.labels if leftmost else [""] * len(panel.y.labels))
    place.set_xlabel(panel.x.title, color=INK, fontsize=8.5)
    if leftmost:
        place.set_ylabel(panel.y.title, color=INK, fontsize=8.5)
    place.set_title(textwrap.fill(panel.title, 34), fontsize=9.5, color=INK, loc="left")
    place.tick_params(colors=MUTED, labelsize=7.5, length=2)
    for spine in place.spines.values():
        spine.set_visible(False)

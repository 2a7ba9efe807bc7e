"""Converts a panel of a figure to a Vega-Lite specification in plain dictionaries.

The page (`page`) and the images (`images`) use the same specifications and only add sizes. Colours of the theme are CSS
variables, such as var(--ink): the page's style sheet defines them for light and dark screens, and `images` replaces
them for print. Texts from files occur only as data and as literal strings. In an expression they always have JSON
quotes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_posswap.reporting.colours import INK, Look
from hf_posswap.reporting.figures import Axis, BarPanel, Guide, HeatPanel, LinePanel, Panel, Series

Spec = dict[str, Any]

MOST_MARKED = 60
"""If a line of a panel has more points than this, all its lines are thin and have no markers."""
MANY_POINTS = 12
"""If a line of a panel has more points than this, all its markers are smaller."""
LOG_NOTE = " (log)"
"""Suffix of the title of a logarithmic vertical axis."""
BAR_STEP = 0.84
"""The share of a category that its bars fill."""
_CROSS = "M-.5,-.5L.5,.5M-.5,.5L.5,-.5"
SOLID = (1.0, 0.0)
_GUIDE_DASH = [5, 4]
_IN_CELL_DARK, _IN_CELL_LIGHT, _LIGHT_FROM = "#222222", "#FFFFFF", 0.55
CONFIG: Spec = {
    "background": "var(--paper)",
    "lineBreak": "\n",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "ticks": False,
        "labelPadding": 6,
        "labelFontSize": 11.5,
        "labelLimit": 0,
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "titleFontWeight": "normal",
        "gradientThickness": 12,
        "gradientLength": 200,
    },
    "title": {"color": "var(--ink)", "anchor": "start", "fontWeight": "normal"},
}


BACKGROUND_WIDTH, BACKGROUND_OPACITY = 9.0, 0.28
"""Width in pixels and opacity of the lines of background series."""


def css_colour(colour: str) -> str:
    """Return a colour for CSS; black becomes the colour of the text."""
    return "var(--ink)" if colour == INK else colour


def panels_of(panels: Sequence[Panel], styles: Mapping[str, Look]) -> list[Spec]:
    """Return the layers of each panel of a figure, without size and configuration.

    Args:
        panels: the panels; a series has the same style in all of them.
        styles: style of each scheme.
    """
    scales = scales_of(panels, styles)
    bounds = _common_bounds(panels)
    return [_heat(panel) if isinstance(panel, HeatPanel) else _marks(panel, scales, bounds) for panel in panels]


def scales_of(panels: Sequence[Panel], styles: Mapping[str, Look]) -> dict[str, Spec]:
    """Return the scales that map a series' label to its style, by channel.

    Each line is thinner than the line before it and has smaller markers, so that overlapping lines are all visible.
    """
    series = list(named_series(panels).values())
    front = [one.key for one in series if not one.background]
    place = {id(one): front.index(one.key) / len(front) if not one.background else 0.0 for one in series}

    def scale(style: Any) -> Spec:
        values = [style(one, styles[one.key]) for one in series]
        return {"type": "ordinal", "domain": [one.label for one in series], "range": values}

    return {
        "color": scale(lambda _, look: css_colour(look.colour)),
        "fill": scale(lambda _, look: "var(--paper)" if look.hollow else css_colour(look.colour)),
        "fillOpacity": scale(lambda one, look: 0.45 if one.pale or look.hollow else 1.0),
        "shape": scale(lambda _, look: look.marker),
        "strokeDash": scale(lambda _, look: list(look.dash or SOLID)),
        "strokeWidth": scale(
            lambda one, _: BACKGROUND_WIDTH if one.background else round(3.4 - 1.8 * place[id(one)], 2)
        ),
        "strokeOpacity": scale(lambda one, _: BACKGROUND_OPACITY if one.background else 1.0),
        "size": scale(lambda one, _: 0.0 if one.background else round((8.5 - 4 * place[id(one)]) ** 2, 1)),
    }


def named_series(panels: Sequence[Panel]) -> dict[str, Series]:
    """Return the series of all panels by label; of several series with one label, the first."""
    found: dict[str, Series] = {}
    for panel in panels:
        for series in () if isinstance(panel, HeatPanel) else panel.series:
            found.setdefault(series.label, series)
    return found


def styled(scales: Mapping[str, Spec], *channels: str) -> Spec:
    """Return encodings that give marks the style of their series, without a legend."""
    return {
        channel: {
            "field": "label",
            "type": "nominal" if channel == "shape" else "ordinal",  # Vega-Lite warns about other types
            "sort": None,
            "legend": None,
            "scale": scales[channel],
        }
        for channel in channels
    }


def _marks(panel: LinePanel | BarPanel, scales: Mapping[str, Spec], bounds: tuple[float, float] | None) -> Spec:
    """Return a panel of lines or bars with its guides."""
    layers = _bars(panel, scales, bounds) if isinstance(panel, BarPanel) else _lines(panel, scales, bounds)
    # Vega draws series in the order of their rows, so the widest lines come first.
    order = scales["color"]["domain"]
    series = sorted(panel.series, key=lambda one: (not one.background, order.index(one.label)))
    return {
        "data": {"values": [row for one in series for row in _rows(one, panel)]},
        "layer": [*layers, *(layer for guide in panel.guides for layer in _guide(guide, panel.x))],
    }


def _rows(series: Series, panel: LinePanel | BarPanel) -> list[Spec]:
    """Return the points of a series as rows; a point without a value has a row only if it breaks a line."""
    runs = {index: number for number, run in enumerate(_runs(series)) for index in run}
    known = series.known()
    breaks = isinstance(panel, LinePanel) and panel.x.scale != "category"
    rows = []
    for index in range(len(series.x)) if breaks else known:
        row: Spec = {"key": series.key, "label": series.label, "x": series.x[index], "y": series.y[index]}
        if isinstance(panel, BarPanel):
            row["x"] = panel.x.labels[int(series.x[index])]
        if series.hover:
            row["hover"] = series.hover[index]
        if series.equal:
            row["name"] = series.name
        if index in runs:
            row |= {"low": series.low[index], "high": series.high[index], "run": f"{series.label} {runs[index]}"}
        if index in _alone(series):
            row["alone"] = True
        if series.end and index == known[-1]:
            row["end"] = series.end
        rows.append(row)
    return rows


def _alone(series: Series) -> set[int]:
    """Return the points of a background series without neighbours: a line does not show them, and it has no markers."""
    known = set(series.known() if series.background else ())
    return {index for index in known if not {index - 1, index + 1} & known}


def _runs(series: Series) -> list[list[int]]:
    """Return the runs of points with intervals to draw; a background series has none."""
    return [] if series.background else series.banded_runs()


def _lines(panel: LinePanel, scales: Mapping[str, Spec], bounds: tuple[float, float] | None) -> list[Spec]:
    """Return layers in drawing order: bands, lines, markers, and marks at the ends of lines."""
    x: Spec = {"field": "x", "type": "quantitative"} | _axis(panel.x)
    places = [*panel.x.ticks, *(place for series in panel.series for place in series.x)]
    if panel.x.scale != "category" and places:
        x["scale"] = x["scale"] | {"domain": [min(places), max(places)]}
    y: Spec = {"field": "y", "type": "quantitative"} | _axis(panel.y, LOG_NOTE)
    if bounds:
        y["scale"] = y["scale"] | {"domain": list(bounds)}
    many = max((len(series.x) for series in panel.series), default=0)
    marked = many <= MOST_MARKED
    widths = styled(scales, "strokeWidth") if marked else {"strokeWidth": {"value": 1.2}}
    line: Spec = {
        "mark": {"type": "line", "invalid": "break-paths-show-domains"},
        "encoding": {"x": x, "y": y} | styled(scales, "color", "strokeDash", "strokeOpacity") | widths,
    }
    layers = [_bands(x, y, scales), line] if any(_runs(series) for series in panel.series) else [line]
    if marked:
        layers.append(_markers(x, y, scales, 0.4 if many > MANY_POINTS else 1.0))
    if any(_alone(series) for series in panel.series):
        layers.append({
            "transform": [{"filter": "isValid(datum.alone)"}],
            "mark": {"type": "point", "filled": True, "size": BACKGROUND_WIDTH**2, "opacity": BACKGROUND_OPACITY},
            "encoding": {"x": x, "y": y} | styled(scales, "color"),
        })  # fmt: skip
    if any(series.end and series.known() for series in panel.series):
        layers.append({
            "transform": [{"filter": "isValid(datum.end)"}],
            "mark": {"type": "point", "opacity": 1, "shape": _CROSS, "size": 190, "strokeWidth": 2.4},
            "encoding": {"x": x, "y": y} | styled(scales, "color"),
        })  # fmt: skip
    return layers


def _bands(x: Spec, y: Spec, scales: Mapping[str, Spec]) -> Spec:
    """Return the layer of intervals: an area for each run of adjacent points."""
    return {
        "transform": [{"filter": "isValid(datum.run)"}],
        "mark": {"type": "area", "opacity": 0.11},
        "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "detail": {"field": "run"}}
        | styled(scales, "color"),
    }


def _markers(x: Spec, y: Spec, scales: Mapping[str, Spec], share: float) -> Spec:
    """Return the layer of markers, whose areas are multiplied by `share`."""
    size = styled(scales, "size")
    size["size"]["scale"] = scales["size"] | {"range": [share * area for area in scales["size"]["range"]]}
    return {
        "transform": [{"filter": "isValid(datum.y)"}],
        "mark": {"type": "point", "opacity": 1, "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y} | styled(scales, "color", "fill", "shape") | size,
    }


def _bars(panel: BarPanel, scales: Mapping[str, Spec], bounds: tuple[float, float] | None) -> list[Spec]:
    """Return the layers of bars, side by side in each category, and of whiskers; bars of variants are pale."""
    band = {"paddingInner": 1 - BAR_STEP, "paddingOuter": (1 - BAR_STEP) / 2}
    x: Spec = {
        "field": "x",
        "type": "nominal",
        "sort": list(panel.x.labels),
        "scale": band | {"domain": list(panel.x.labels)},
        "axis": {"title": panel.x.title or None, "grid": False, "labelAngle": 0},
    }
    y: Spec = {"field": "y", "type": "quantitative"} | _axis(panel.y, LOG_NOTE)
    y["scale"] = {"type": y["scale"]["type"], "zero": True} | ({"domain": list(bounds)} if bounds else {})
    beside = {"xOffset": {"field": "label", "sort": None, "scale": {"paddingInner": 0.08}}}
    bar: Spec = {
        "mark": {"type": "bar", "strokeWidth": 1.5, "tooltip": {"expr": "[datum]"}},
        "encoding": {"x": x, "y": y, "stroke": styled(scales, "color")["color"]}
        | beside
        | styled(scales, "color", "fillOpacity"),
    }
    whisker: Spec = {
        "transform": [{"filter": "isValid(datum.run)"}],
        "mark": {"type": "rule", "color": "var(--ink)", "strokeWidth": 1.2},
        "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}} | beside,
    }
    return [bar, whisker] if any(_runs(series) for series in panel.series) else [bar]


def _axis(axis: Axis, log_note: str = "") -> Spec:
    """Return scale and axis of a quantity, with the figure's ticks; the title of a logarithmic axis gets the note."""
    log = axis.scale == "log"
    drawn: Spec = {"title": f"{axis.title}{log_note if log else ''}" or None}
    scale: Spec = {"type": "log" if log else "linear", "nice": False, "padding": 14}
    if not log:
        scale["zero"] = False
    if axis.ticks:
        drawn |= {"values": list(axis.ticks), "labelExpr": _labels(axis.ticks, axis.labels)}
    if axis.scale == "category" and axis.ticks:
        scale = {"type": "linear", "nice": False, "domain": [axis.ticks[0] - 0.5, axis.ticks[-1] + 0.5]}
    return {"scale": scale, "axis": drawn}


def _labels(ticks: Sequence[float], labels: Sequence[str]) -> str:
    """Return the expression for the label of a tick; a tick without a label in `labels` shows its number."""
    names = json.dumps({f"{tick:.12g}": label for tick, label in zip(ticks, labels, strict=True)})
    # JavaScript formats large and small numbers differently from Python, so both sides are rounded to 12 digits.
    return f"{names}[toString(toNumber(format(datum.value, '.12')))] || format(datum.value, '~g')"


def _guide(guide: Guide, x: Axis) -> list[Spec]:
    """Return a guide as a line with its text; if it is far outside the axis, as a text with an arrow at the edge."""
    text: Spec = {"type": "text", "color": "var(--muted)", "fontSize": 10.5}
    line: Spec = {"type": "rule", "color": "var(--muted)", "strokeDash": _GUIDE_DASH}
    data = {"values": [{"at": guide.value}]}
    at = {"field": "at", "type": "quantitative"}
    if guide.axis == "y":
        return [
            {"data": data, "mark": line, "encoding": {"y": at}},
            {
                "data": data,
                "mark": text | {"align": "left", "dx": 4},
                "encoding": {"x": {"value": "width"}, "y": at, "text": {"value": guide.text}},
            },
        ]
    text |= {"baseline": "bottom", "dy": -4}
    side = guide.side(x)
    if side == "inside":
        align = "center"  # centred text at an edge would leave the panel
        if len(x.ticks) > 1:
            align = "left" if guide.value <= x.ticks[0] else "right" if guide.value >= x.ticks[-1] else align
        words: Spec = {"x": at, "y": {"value": 0}, "text": {"value": guide.text}}
        return [
            {"data": data, "mark": line, "encoding": {"x": at}},
            {"data": data, "mark": text | {"align": align}, "encoding": words},
        ]
    after = side == "after"
    words = {"x": {"value": "width" if after else 0}, "y": {"value": 0}}
    words["text"] = {"value": f"{guide.text} →" if after else f"← {guide.text}"}
    return [{"data": {"values": [{}]}, "mark": text | {"align": "right" if after else "left"}, "encoding": words}]


def _common_bounds(panels: Sequence[Panel]) -> tuple[float, float] | None:
    """Return the ends of a vertical axis for all panels; None if there is only one panel or their quantities differ."""
    marked = [panel for panel in panels if not isinstance(panel, HeatPanel)]
    if len(marked) < 2 or len(marked) < len(panels) or len({(p.y.title, p.y.scale) for p in marked}) > 1:
        return None
    logarithmic = marked[0].y.scale == "log"
    values = [value for panel in marked for value in panel.extent() if value > 0 or not logarithmic]
    known = [math.log10(value) if logarithmic else value for value in values]
    if not known:
        return None
    margin = 0.06 * (max(known) - min(known)) or 0.05
    low, high = min(known) - margin, max(known) + margin
    if all(isinstance(panel, BarPanel) for panel in panels):
        return 0.0, high
    return (10**low, 10**high) if logarithmic else (low, high)


def _heat(panel: HeatPanel) -> Spec:
    """Return a heat map. Cells without texts overlap slightly, so that anti-aliasing shows no gaps between them."""
    x, y = _cells_axis("x", panel.x, len(panel.columns)), _cells_axis("y", panel.y, len(panel.rows))
    y["scale"]["reverse"] = True
    cells = [
        {
            "key": panel.key, "x": column, "y": row,
            "right": column + 1, "below": row + 1,
            "value": value, "name": f"{panel.rows[row]}, {panel.columns[column]}",
        }
        | (_cell_text(panel, row, column) if panel.texts else {})
        for row, line in enumerate(panel.values)
        for column, value in enumerate(line)
    ]  # fmt: skip
    colour = {
        "field": "value",
        "type": "quantitative",
        "scale": {
            "domain": [panel.colour.low, panel.colour.high],
            "range": list(panel.colour.colours),
            "clamp": True,
            "interpolate": "rgb",
        },
        "legend": None if panel.texts else {"title": panel.colour.title},
    }
    between: Spec = {"x2Offset": 1, "y2Offset": 1}
    if panel.texts:
        between = {"stroke": "var(--paper)", "strokeWidth": 1}
    layers: list[Spec] = [
        {
            "transform": [{"filter": "isValid(datum.value)"}],
            "mark": {
                "type": "rect",
                "tooltip": {"expr": "[{name: datum.name, hover: format(datum.value, '.3~g')}]"},
                **between,
            },
            "encoding": {"x": x, "x2": {"field": "right"}, "y": y, "y2": {"field": "below"}, "color": colour},
        }
    ]
    if panel.texts:
        layers.append({
            "transform": [{"calculate": f"datum.{side} + 0.5", "as": side} for side in ("x", "y")],
            "mark": {"type": "text", "fontSize": 10},
            "encoding": {
                "x": x,
                "y": y,
                "text": {"field": "text"},
                "color": {"field": "ink", "type": "nominal", "scale": None},
            },
        })  # fmt: skip
    if panel.rules:
        layers.append({
            "data": {"values": [{"at": row} for row in panel.rules]},
            "mark": {"type": "rule", "color": "var(--muted)", "strokeWidth": 0.8},
            "encoding": {"y": {"field": "at", "type": "quantitative"}},
        })  # fmt: skip
    return {"data": {"values": cells}, "layer": layers, "view": {"fill": "var(--shade)"}}


def _cell_text(panel: HeatPanel, row: int, column: int) -> Spec:
    """Return the text of a cell and the text's colour, which contrasts with the cell's colour."""
    text, value = panel.texts[row][column], panel.values[row][column]
    if not text or value is None:
        return {"text": "—", "ink": "var(--muted)"}
    share = (value - panel.colour.low) / (panel.colour.high - panel.colour.low)
    return {"text": text, "ink": _IN_CELL_DARK if share > _LIGHT_FROM else _IN_CELL_LIGHT}


def _cells_axis(field: str, axis: Axis, count: int) -> Spec:
    """Return the encoding of the cells' positions on one axis, with labels at the middle of the cells with ticks."""
    middles = [tick + 0.5 for tick in axis.ticks]
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"domain": [0, count], "nice": False},
        "axis": {
            "title": axis.title or None,
            "grid": False,
            "domain": False,
            "ticks": True,
            "values": middles,
            "labelExpr": _labels(middles, axis.labels),
        },
    }

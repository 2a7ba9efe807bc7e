"""Converts the description of a figure to plotly.js: for each panel the traces and the layout, as plain dictionaries.

Colours that depend on the light or dark theme are CSS variables, such as var(--ink), which the page resolves. All
values from files are escaped here, because plotly interprets some HTML in every text.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_posswap.reporting.colours import INK, Look
from hf_posswap.reporting.figures import Axis, BarPanel, Figure, Guide, HeatPanel, LinePanel, Panel, Series

Drawing = dict[str, Any]

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "<": "triangle-left",
    ">": "triangle-right",
}
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
MOST_MARKED = 60
SAID = "%{text}<extra></extra>"


def drawings(figure: Figure, styles: Mapping[str, Look]) -> list[Drawing]:
    """Return plotly's traces and layout for each panel of a figure.

    Args:
        figure: the figure.
        styles: style of each scheme.
    """
    result = [_drawing(panel, styles) for panel in figure.panels]
    bounds = _common_bounds(figure.panels)
    if bounds is not None:
        for drawing in result:
            drawing["layout"]["yaxis"]["range"] = bounds
    return result


def _common_bounds(panels: Sequence[Panel]) -> list[float] | None:
    """Return plotly's range of a vertical axis that fits all panels of one quantity; None for one panel."""
    lines = [panel for panel in panels if isinstance(panel, LinePanel)]
    if len(lines) < 2 or len(lines) < len(panels) or len({(p.y.title, p.y.scale) for p in lines}) > 1:
        return None
    logarithmic = lines[0].y.scale == "log"
    values = [value for panel in lines for value in panel.extent() if value > 0 or not logarithmic]
    known = [math.log10(value) if logarithmic else value for value in values]
    if not known:
        return None
    margin = 0.06 * (max(known) - min(known)) or 0.05
    return [min(known) - margin, max(known) + margin]


def escaped(text: str) -> str:
    """Return a text escaped so that plotly displays tags and entities in it literally."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def css_colour(colour: str) -> str:
    """Return a colour; black is replaced by the page's text colour."""
    return "var(--ink)" if colour == INK else colour


def dash_of(look: Look) -> str:
    """Return plotly's name of a line style."""
    return DASHES.get(look.line, "longdashdot") if isinstance(look.line, str) else "longdashdot"


def _drawing(panel: Panel, styles: Mapping[str, Look]) -> Drawing:
    if isinstance(panel, HeatPanel):
        return _heat(panel)
    traces = _bars(panel, styles) if isinstance(panel, BarPanel) else _lines(panel, styles)
    layout: Drawing = {
        "xaxis": _axis(panel.x),
        "yaxis": _axis(panel.y),
        "hovermode": "closest" if isinstance(panel, BarPanel) else "x unified",
        "shapes": [_guide_line(guide, panel.x) for guide in panel.guides if guide.side(panel.x) == "inside"],
        "annotations": [_pointer(guide, panel.x) for guide in panel.guides if guide.side(panel.x) != "inside"],
    }
    level = [guide.text for guide in panel.guides if guide.axis == "y"]
    if level:
        layout["margin"] = {"r": 16 + 6 * max(map(len, level))}  # room for guides' labels right of the axes
    if isinstance(panel, BarPanel):
        layout |= {"barmode": "group", "bargap": 0.2, "bargroupgap": 0.06}
        layout["yaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def _axis(axis: Axis) -> Drawing:
    result: Drawing = {
        "title": {"text": escaped(axis.title)},
        "type": "log" if axis.scale == "log" else "linear",
        "exponentformat": "none",
    }
    if axis.ticks:
        result |= {"tickvals": list(axis.ticks), "ticktext": [escaped(label) for label in axis.labels]}
    if axis.scale == "category" and axis.ticks:
        result["range"] = [axis.ticks[0] - 0.5, axis.ticks[-1] + 0.5]
    return result


def _lines(panel: LinePanel, styles: Mapping[str, Look]) -> list[Drawing]:
    """Return the traces in drawing order: bands, then lines of decreasing width, then marks at the ends of lines."""
    foreground = [series for series in panel.series if not series.background]
    bands, lines, ends = [], [], []
    for series in panel.series:
        look = styles[series.key]
        order = foreground.index(series) / max(1, len(foreground)) if not series.background else 0.0
        line = _background(series, look) if series.background else _line(series, look, order)
        lines.append(line | {"connectgaps": panel.x.scale == "category"})
        if not series.background and series.banded_runs():
            bands.append(_band(series, look))
        if series.end and series.known():
            ends.append(_end(series, look))
    return bands + lines + ends


def _line(series: Series, look: Look, order: float) -> Drawing:
    colour = css_colour(look.colour)
    few = len(series.x) <= MOST_MARKED
    return {
        "type": "scatter",
        "mode": "lines+markers" if few else "lines",
        "name": escaped(series.label),
        "meta": {"key": series.key},
        "x": list(series.x),
        "y": list(series.y),
        "text": _said(series),
        "hovertemplate": SAID,
        "line": {"color": colour, "width": round(3.6 - 1.6 * order, 2) if few else 1.4, "dash": dash_of(look)},
        "marker": {
            "color": "var(--paper)" if look.hollow else colour,
            "symbol": SYMBOLS.get(look.marker, "circle"),
            "size": round((9 - 4 * order) * (1 if len(series.x) <= 12 else 0.7), 1),
            "line": {"color": colour, "width": 1.5 if look.hollow else 0},
        },
    }


def _background(series: Series, look: Look) -> Drawing:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escaped(series.label),
        "meta": {"key": series.key},
        "x": list(series.x),
        "y": list(series.y),
        "text": _said(series),
        "hovertemplate": SAID,
        "line": {"color": css_colour(look.colour), "width": 9},
        "opacity": 0.3,
    }


def _said(series: Series) -> list[str]:
    texts = series.hover or ("",) * len(series.x)
    return [f"<b>{escaped(series.label)}</b> {escaped(text)}" for text in texts]


def _band(series: Series, look: Look) -> Drawing:
    """Return the intervals as one trace: a closed outline for each run of adjacent points, with gaps between runs."""
    x: list[float | None] = []
    y: list[float | None] = []
    for run in series.banded_runs():
        x += [*(series.x[i] for i in run), *(series.x[i] for i in reversed(run)), None]
        y += [*(series.low[i] for i in run), *(series.high[i] for i in reversed(run)), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": {"key": series.key, "band": True},
        "x": x[:-1],
        "y": y[:-1],
        "fill": "toself",
        "fillcolor": css_colour(look.colour),
        "line": {"width": 0},
        "opacity": 0.13,
        "hoverinfo": "skip",
    }


def _end(series: Series, look: Look) -> Drawing:
    last = series.known()[-1]
    return {
        "type": "scatter",
        "mode": "markers",
        "meta": {"key": series.key, "end": True},
        "x": [series.x[last]],
        "y": [series.y[last]],
        "text": [f"{escaped(series.label)} ends here: {escaped(series.end)}"],
        "hovertemplate": SAID,
        "marker": {"symbol": "x-thin", "size": 12, "line": {"color": css_colour(look.colour), "width": 2.4}},
    }


def _bars(panel: BarPanel, styles: Mapping[str, Look]) -> list[Drawing]:
    traces = []
    for series in panel.series:
        look = styles[series.key]
        trace: Drawing = {
            "type": "bar",
            "name": escaped(series.label),
            "meta": {"key": series.key},
            "x": list(series.x),
            "y": list(series.y),
            "hovertext": _said(series),
            "hovertemplate": "%{hovertext}<extra></extra>",
            "marker": {"color": css_colour(look.colour)},
        }
        if look.hollow or series.hatched:
            trace["marker"]["pattern"] = {
                "shape": "/",
                "fgcolor": "var(--paper)",
                "fillmode": "overlay",
                "size": 7,
                "solidity": 0.3,
            }
        if series.banded_runs():
            ends = list(zip(series.y, series.low, series.high, strict=True))
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [None if y is None or high is None else high - y for y, _, high in ends],
                "arrayminus": [None if y is None or low is None else y - low for y, low, _ in ends],
                "color": "var(--ink)",
                "thickness": 1.2,
                "width": 3,
            }
        traces.append(trace)
    return traces


def _heat(panel: HeatPanel) -> Drawing:
    count = len(panel.colour.colours) - 1
    trace: Drawing = {
        "type": "heatmap",
        "meta": {"key": panel.key},
        "x": list(panel.columns),
        "y": list(panel.rows),
        "z": [list(line) for line in panel.values],
        "zmin": panel.colour.low,
        "zmax": panel.colour.high,
        "colorscale": [[place / count, colour] for place, colour in enumerate(panel.colour.colours)],
        "hovertemplate": "%{y}, %{x}: %{z:.3~g}<extra></extra>",
        "hoverongaps": False,
        "colorbar": {
            "title": {"text": escaped(panel.colour.title), "side": "right"},
            "thickness": 10,
            "outlinewidth": 0,
        },
    }
    if panel.texts:
        trace |= {"text": [list(line) for line in panel.texts], "texttemplate": "%{text}"}
        trace |= {"xgap": 1, "ygap": 1, "showscale": False}
    layout = {
        "xaxis": _names(panel.x, panel.columns),
        "yaxis": _names(panel.y, panel.rows) | {"autorange": "reversed"},
        "hovermode": "closest",
        "shapes": [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": row - 0.5, "y1": row - 0.5,
                "line": {"color": "var(--muted)", "width": 1},
            }
            for row in panel.rules
        ],
        "annotations": [],
    }  # fmt: skip
    return {"data": [trace], "layout": layout, "rows": len(panel.rows)}


def _names(axis: Axis, names: tuple[str, ...]) -> Drawing:
    """Return an axis of categories, some of which have labels."""
    return {
        "title": {"text": escaped(axis.title)},
        "type": "category",
        "tickvals": [names[int(tick)] for tick in axis.ticks],
        "ticktext": [escaped(label) for label in axis.labels],
        "showgrid": False,
    }


def _guide_line(guide: Guide, axis: Axis) -> Drawing:
    across = {"x0": guide.value, "x1": guide.value, "yref": "paper", "y0": 0, "y1": 1}
    along = {"xref": "paper", "x0": 0, "x1": 1, "y0": guide.value, "y1": guide.value}
    font = {"color": "var(--muted)", "size": 11}
    ends = {axis.ticks[0]: "left", axis.ticks[-1]: "right"} if len(axis.ticks) > 1 else {}
    side = ends.get(guide.value, "center")  # centred text at an edge would leave the figure
    upright = {"textposition": "end", "textangle": 0, "yanchor": "bottom", "xanchor": side}
    level = {"textposition": "end", "yanchor": "middle", "xanchor": "left"}
    return {
        "type": "line",
        **(across if guide.axis == "x" else along),
        "line": {"color": "var(--muted)", "width": 1.2, "dash": "dash"},
        "label": {"text": escaped(guide.text), "font": font, **(upright if guide.axis == "x" else level)},
    }


def _pointer(guide: Guide, axis: Axis) -> Drawing:
    """Return text at the edge with an arrow in the direction of the guide."""
    after = guide.side(axis) == "after"
    text = escaped(guide.text)
    return {
        "text": f"{text} →" if after else f"← {text}",
        "xref": "paper",
        "yref": "paper",
        "x": 1 if after else 0,
        "y": 1,
        "xanchor": "right" if after else "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"color": "var(--muted)", "size": 11},
    }

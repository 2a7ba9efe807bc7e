"""Draws a figure as an image (PNG, SVG, PDF) with its Vega-Lite panels, a legend and the small print.

The files contain no dates and no random names, so the same figure gives the same PNG and SVG bytes.
"""

import struct
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.errors import MissingPackageError
from hf_posswap.reporting.colours import Look, looks
from hf_posswap.reporting.figures import BarPanel, Figure, HeatPanel, Panel
from hf_posswap.reporting.vega import CONFIG, Spec, named_series, panels_of, scales_of, styled

PRINT = {
    "var(--ink)": "#222222",
    "var(--muted)": "#666666",
    "var(--grid)": "#E4E4E4",
    "var(--line)": "#BBBBBB",
    "var(--paper)": "#FFFFFF",
    "var(--shade)": "#EEEEEE",
}
"""Colours of the theme for print."""
FONT = "DejaVu Sans, Verdana, Arial, sans-serif"
PIXELS = 1.5
"""Pixels of a PNG for each pixel of the specification."""
_SIGNATURE = 8
"""Length of a PNG's signature."""
MOST_COMMANDS = 3
SMALL_ROWS = 16
"""A heat map with at most this many rows is small."""
LINE_SIZE, SMALL_MAP_WIDTH, MAP_WIDTH = (360, 250), 190, 360
ABOVE_PANEL = 24
"""Space for the text of guides between a panel and its title, in pixels."""
NOTE_SIZE, NOTE_LETTER = 8.5, 5.0
"""Size of the small print and mean width of its letters, in pixels."""
LEGEND_STEP, LEGEND_LINE = 19, 34
"""Height of an entry and length of its line, in pixels."""


def draw(figure: Figure, path: Path, styles: Mapping[str, Look] | None = None) -> None:
    """Draw a figure to a file; the suffix of the file determines the format (PNG, SVG, PDF).

    Args:
        figure: the figure.
        path: the file to write.
        styles: style of each scheme, the same for several figures. None: the styles of `looks` for this figure.

    Raises:
        MissingPackageError: vl-convert-python is not installed.
    """
    vega = converter()
    svg = vega.vegalite_to_svg(sheet(figure, styles if styles is not None else looks(figure.schemes())))
    if path.suffix == ".png":
        path.write_bytes(repacked(vega.svg_to_png(svg, scale=PIXELS)))
    elif path.suffix == ".pdf":
        path.write_bytes(vega.svg_to_pdf(svg))
    else:
        path.write_text(svg, encoding="utf-8")


def repacked(png: bytes) -> bytes:
    """Return a PNG with its pixels compressed again; the converter's compression gives several times the size.

    Args:
        png: a PNG file.
    """
    kept, pixels, start = [png[:_SIGNATURE]], b"", _SIGNATURE
    while start < len(png):
        (length,) = struct.unpack_from(">I", png, start)
        name, data = png[start + 4 : start + 8], png[start + 8 : start + 8 + length]
        if name == b"IDAT":
            pixels += data
        else:
            if name == b"IEND":
                kept.append(_chunk(b"IDAT", zlib.compress(zlib.decompress(pixels), 9)))
            kept.append(_chunk(name, data))
        start += 12 + length
    return b"".join(kept)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def converter() -> Any:
    """Return the package that contains Vega and draws with it.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise MissingPackageError(
            "figures are drawn by vl-convert-python, which is not installed. Install it with "
            'pip install "hf_posswap[report]".'
        ) from error
    return vl_convert


def sheet(figure: Figure, styles: Mapping[str, Look]) -> Spec:
    """Return the specification of a whole figure on white paper.

    Args:
        figure: the figure.
        styles: style of each scheme.
    """
    columns = _columns(figure.panels)
    size = _size(figure.panels)
    views = []
    for index, (panel, spec) in enumerate(zip(figure.panels, panels_of(figure.panels, styles), strict=True)):
        inner = _without_left_axis(spec) if index % columns and _same_left_axis(figure.panels) else spec
        title = _title(textwrap.wrap(panel.title, 2 * size["width"] // 13))
        views.append(inner | size | {"layer": [*inner["layer"], title]})
    grid = {"concat": views, "columns": columns, "spacing": 24, "resolve": {"scale": {"xOffset": "independent"}}}
    parts: list[Spec] = [grid]
    width = columns * (size["width"] + 60)
    if named_series(figure.panels):
        parts.append(_legend(figure, styles))
        width += LEGEND_LINE + 7 * max(len(name) for _, name in _names(figure.panels))
    rows: list[Spec] = [{"hconcat": parts, "center": True, "spacing": 30}]
    if notes := _notes(figure, int(width / NOTE_LETTER)):
        rows.append(_small_print(notes))
    whole = {
        "config": CONFIG | {"font": FONT},
        "padding": 12,
        "title": {"text": textwrap.wrap(figure.title, width // 9), "fontSize": 16, "offset": 20},
        "vconcat": rows,
        "bounds": "full",
        "resolve": {"scale": {"color": "independent"}},
    }
    printed: Spec = _printed(whole)
    return printed


def _printed(value: Any) -> Any:
    """Return a specification in which the colours for print replace those of the theme."""
    if isinstance(value, dict):
        return {name: _printed(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_printed(part) for part in value]
    return PRINT.get(value, value) if isinstance(value, str) else value


def _columns(panels: Sequence[Panel]) -> int:
    """Return the number of columns with which the rows of a sheet are filled evenly."""
    most = 4 if all(isinstance(panel, HeatPanel) for panel in panels) and _small(panels) else 3
    rows = max(1, -(-len(panels) // most))
    return max(1, -(-len(panels) // rows))


def _small(panels: Sequence[Panel]) -> bool:
    """Return whether all heat maps among the panels have few rows."""
    return all(len(panel.rows) <= SMALL_ROWS for panel in panels if isinstance(panel, HeatPanel))


def _size(panels: Sequence[Panel]) -> dict[str, int]:
    """Return width and height of each panel in pixels."""
    maps = [panel for panel in panels if isinstance(panel, HeatPanel)]
    if not maps:
        return {"width": LINE_SIZE[0], "height": LINE_SIZE[1]}
    tallest = max(len(panel.rows) for panel in maps)
    height = max(100, 22 * tallest) if _small(panels) else min(680, 10 * tallest)
    return {"width": SMALL_MAP_WIDTH if _small(panels) else MAP_WIDTH, "height": height}


def _same_left_axis(panels: Sequence[Panel]) -> bool:
    """Return whether all panels have the same vertical axis, so that only the leftmost panel needs its title."""
    maps = {panel.rows for panel in panels if isinstance(panel, HeatPanel)}
    others = {panel.y.title for panel in panels if not isinstance(panel, HeatPanel)}
    return len(maps) + len(others) == 1


def _without_left_axis(spec: Spec) -> Spec:
    """Return a panel without the title of the vertical axis; a heat map also without the labels of this axis."""
    words = {"title": None} | ({"labels": False} if "view" in spec else {})

    def bare(layer: Spec) -> Spec:
        y = layer["encoding"].get("y", {})
        if "axis" not in y:
            return layer
        return layer | {"encoding": layer["encoding"] | {"y": y | {"axis": y["axis"] | words}}}

    return spec | {"layer": [bare(layer) for layer in spec["layer"]]}


def _title(lines: Sequence[str]) -> Spec:
    """Return a panel's title as a layer. Vega places its own titles higher if a vertical axis has a long title."""
    text = {"type": "text", "align": "left", "baseline": "bottom", "color": "var(--ink)", "fontSize": 12.5}
    return {
        "data": {"values": [{}]},
        "mark": text | {"text": list(lines), "lineHeight": 15},
        "encoding": {"x": {"value": 0}, "y": {"value": -ABOVE_PANEL}},
    }


def _legend(figure: Figure, styles: Mapping[str, Look]) -> Spec:
    """Return a legend with the line and marker, or the bar, of each series."""
    scales = scales_of(figure.panels, styles)
    names = _names(figure.panels)
    bars = all(isinstance(panel, BarPanel) for panel in figure.panels)
    scale = {"domain": [-0.5, len(names) - 0.5], "reverse": True, "nice": False, "zero": False}
    y = {"field": "place", "type": "quantitative", "axis": None, "scale": scale}
    across: Spec = {"x": {"value": 0}, "x2": {"value": LEGEND_LINE}, "y": y}
    middle: Spec = {"x": {"value": LEGEND_LINE / 2}, "y": y}
    swatch: list[Spec] = [
        {
            "mark": {"type": "rule"},
            "encoding": across | styled(scales, "color", "strokeDash", "strokeWidth", "strokeOpacity"),
        },
        {
            "mark": {"type": "point", "opacity": 1, "strokeWidth": 1.5},
            "encoding": middle | styled(scales, "color", "fill", "shape", "size"),
        },
    ]
    if bars:
        box = {"type": "point", "shape": "square", "size": 130, "opacity": 1, "strokeWidth": 1, "filled": True}
        fill = styled(scales, "color")["color"]
        swatch = [{"mark": box, "encoding": middle | styled(scales, "color", "fillOpacity") | {"stroke": fill}}]
    words = {
        "mark": {"type": "text", "align": "left", "color": "var(--ink)", "fontSize": 11.5},
        "encoding": {"x": {"value": LEGEND_LINE + 8}, "y": y, "text": {"field": "name"}},
    }
    return {
        "data": {"values": [{"label": label, "name": name, "place": n} for n, (label, name) in enumerate(names)]},
        "width": LEGEND_LINE + 8,
        "height": LEGEND_STEP * len(names),
        "layer": [*swatch, words],
    }


def _names(panels: Sequence[Panel]) -> list[tuple[str, str]]:
    """Return the label and the legend's name of each series.

    The name includes the label of an equal series if the two series are equal in all panels.
    """
    names: dict[str, set[str]] = {}
    for panel in panels:
        for series in () if isinstance(panel, HeatPanel) else panel.series:
            names.setdefault(series.label, set()).add(series.name)
    return [(label, found.pop() if len(found) == 1 else label) for label, found in names.items()]


def _small_print(notes: Sequence[str]) -> Spec:
    text = {"type": "text", "align": "left", "baseline": "top", "color": "var(--muted)", "fontSize": NOTE_SIZE}
    line_height = NOTE_SIZE * 1.3
    return {
        "data": {"values": [{}]},
        "width": 1,
        "height": line_height * len(notes),
        "mark": text | {"text": list(notes), "lineHeight": line_height},
        "encoding": {"x": {"value": 0}, "y": {"value": 0}},
    }


def _notes(figure: Figure, letters: int) -> list[str]:
    """Return the lines of small print: gaps, the origin of the numbers, and the first commands."""
    commands = [f"$ {line}" for line in figure.provenance.commands]
    if len(commands) > MOST_COMMANDS:
        more = len(commands) - MOST_COMMANDS + 1
        commands = [*commands[: MOST_COMMANDS - 1], f"… and {more} more commands, which the report lists."]
    notes = [*figure.gaps, figure.provenance.summary(), *commands]
    return [line for note in notes for line in textwrap.wrap(note, letters)]

"""Makes the report: one HTML page that works offline. The page contains Vega, which draws the figures.

All values from files are escaped for HTML; in figures they are data. A content security policy allows only the page's
own scripts, by their hashes, and no connections. Vega interprets expressions instead of compiling them to code.
"""

import base64
import functools
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from hf_posswap.reporting.colours import Look
from hf_posswap.reporting.figures import BarPanel, Figure, HeatPanel, LinePanel, Panel, Provenance, Table
from hf_posswap.reporting.images import SMALL_ROWS, converter
from hf_posswap.reporting.naming import STAGE_WORDS
from hf_posswap.reporting.vega import CONFIG, Spec, css_colour, panels_of
from hf_posswap.results.groups import Results
from hf_posswap.version import __version__

Chapters = Sequence[tuple[str, Sequence[Figure]]]

UNNAMED = "unnamed model"
TITLE = "Positional schemes: how far they read, and what they cost"
ROW_HEIGHT, TALLEST = 9, 900
"""Height of a row of a heat map with many rows, and of the tallest figure, in pixels."""
_SAMPLES = {
    "circle": "M-.5,0a.5,.5,0,1,1,1,0a.5,.5,0,1,1,-1,0Z",
    "square": "M-.5,-.5h1v1h-1Z",
    "triangle-up": "M0,-.5L.5,.5H-.5Z",
    "triangle-down": "M0,.5L.5,-.5H-.5Z",
    "triangle-left": "M-.5,0L.5,-.5V.5Z",
    "triangle-right": "M.5,0L-.5,-.5V.5Z",
    "diamond": "M0,-.6L.6,0L0,.6L-.6,0Z",
    "cross": "M-.2,-.5h.4v.3h.3v.4h-.3v.3h-.4v-.3h-.3v-.4h.3Z",
}
"""Vega's shapes as SVG paths, for the samples of the schemes' styles."""


@functools.cache
def library() -> str:
    """Return the source of Vega and Vega-Lite.

    Raises:
        MissingPackageError: vl-convert-python is not installed.
    """
    return str(converter().javascript_bundle())


def render_page(results: Results, chapters: Chapters, styles: Mapping[str, Look]) -> str:
    """Return the HTML text of the page. The same results give the same text.

    Args:
        results: the results of the folder.
        chapters: each model with its figures, whose names are unique.
        styles: style of each scheme, the same in every figure.

    Raises:
        MissingPackageError: vl-convert-python is not installed.
    """
    vega, program = library(), _asset("report.js")
    drawn = {figure.name: _drawings(figure, styles) for _, own in chapters for figure in own}
    content = {"config": CONFIG | {"aria": False}, "figures": drawn}
    return "".join([
        "<!DOCTYPE html>\n",
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(vega, program)}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        f"<title>{escape(_title(results))}</title>\n<style>\n{_asset('report.css')}</style>\n</head>\n<body>\n",
        _top(results, chapters),
        _scheme_bar(results.keys(), styles),
        "<main>\n",
        *(_chapter(model, own) for model, own in chapters),
        "</main>\n",
        _footer(results),
        f'<script type="application/json" id="figures">{_json(content)}</script>\n',
        f'<script type="application/octet-stream" id="vega">{_packed(vega)}</script>\n',
        f"<script>{program}</script>\n</body>\n</html>\n",
    ])  # fmt: skip


def _title(results: Results) -> str:
    return f"{TITLE} ({', '.join(name or UNNAMED for name in results.models())})"


def _asset(name: str) -> str:
    return files("hf_posswap.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Return a content security policy that allows these scripts, inline styles and generated images."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """Return JSON with escaped HTML characters, so that no text can end the surrounding script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(source: str) -> str:
    return base64.b64encode(gzip.compress(source.encode("utf-8"), 9, mtime=0)).decode("ascii")


def _top(results: Results, chapters: Chapters) -> str:
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in results.notes)
    return (
        f'<header class="top">\n<h1>{escape(TITLE)}</h1>\n'
        '<p class="lead">Every figure is drawn from result files alone; its numbers, and where they come from, are '
        "under it. One scheme has one colour throughout. Point at a figure to read values. Turn the wheel with Ctrl to "
        "zoom, drag to move, double-click to go back.</p>\n"
        f'{notes}<nav aria-label="Figures">{"".join(_contents(model, figures) for model, figures in chapters)}</nav>\n'
        '<p class="warning" id="trouble" hidden>The figures could not be drawn: this browser is too old for them. All '
        'numbers are in the tables.</p>\n<noscript><p class="warning">The figures need JavaScript. All numbers are in '
        "the tables.</p></noscript>\n</header>\n"
    )


def _contents(model: str, figures: Sequence[Figure]) -> str:
    """Return links to a model's figures; figures with the same heading share a line."""
    lines: dict[str, list[Figure]] = {}
    for figure in figures:
        lines.setdefault(figure.heading, []).append(figure)
    items = []
    for heading, own in lines.items():
        if len(own) == 1 and not own[0].variant:
            items.append(f'<li><a href="#{own[0].name}">{escape(heading)}</a></li>')
            continue
        links = ", ".join(f'<a href="#{f.name}">{escape(f.variant or f.title)}</a>' for f in own)
        items.append(f"<li>{escape(heading)}: {links}</li>")
    return f"<div><strong>{escape(model or UNNAMED)}</strong><ul>{''.join(items)}</ul></div>"


def _scheme_bar(keys: Sequence[str], styles: Mapping[str, Look]) -> str:
    chips = "".join(
        f'<button class="chip" type="button" aria-pressed="true" data-key="{escape(key)}" '
        f'title="Click: show or hide. Double-click: show alone.">{_sample(styles[key])}'
        f"<span>{escape(key)}</span></button>"
        for key in keys
    )
    return (
        f'<div class="schemes" role="group" aria-label="Schemes shown"><div>{chips}'
        '<button type="button" id="show-all">show all</button></div></div>\n'
    )


def _sample(look: Look) -> str:
    """Return an SVG sample of a scheme's line with its marker."""
    colour = css_colour(look.colour)
    dashes = f' stroke-dasharray="{" ".join(map(str, look.dash))}"' if look.dash else ""
    fill = "var(--paper)" if look.hollow else colour
    path = _SAMPLES.get(look.marker, look.marker)
    return (
        f'<svg viewBox="0 0 30 14" aria-hidden="true"><path d="M0 7h30" stroke="{colour}" stroke-width="3"{dashes}/>'
        f'<path d="{path}" transform="translate(15 7) scale(8)" fill="{fill}" '
        f'stroke="{colour}" stroke-width="0.15"/></svg>'
    )


def _drawings(figure: Figure, styles: Mapping[str, Look]) -> list[Spec]:
    """Return, for each panel, its specification with tooltips and zoom, and the scheme of a heat map."""
    specs = panels_of(figure.panels, styles)
    return [_drawing(panel, spec) for panel, spec in zip(figure.panels, specs, strict=True)]


def _drawing(panel: Panel, spec: Spec) -> Spec:
    layers = [layer | {"mark": layer["mark"] | {"clip": layer["mark"]["type"] != "text"}} for layer in spec["layer"]]
    channels = ["y"] if isinstance(panel, BarPanel) else ["x", "y"]
    zoom = {"type": "interval", "encodings": channels, "zoom": "wheel![event.ctrlKey]"}
    layers[0] |= {"params": [{"name": "zoom", "select": zoom, "bind": "scales"}]}
    if isinstance(panel, LinePanel):
        layers.append(_pointed(layers[0]["encoding"]["x"]))
    fixed = {"width": "container", "height": "container", "data": spec["data"] | {"name": "rows"}}
    fit = {
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": 0, "right": 8, "top": 2, "bottom": 0},
    }
    return {"key": panel.key if isinstance(panel, HeatPanel) else None, "spec": spec | fixed | fit | {"layer": layers}}


def _pointed(x: Spec) -> Spec:
    """Return a layer with a line at the x value nearest to the pointer; its tooltip has the values of all series."""
    nearest = {"type": "point", "fields": ["x"], "nearest": True, "on": "pointerover", "clear": "pointerout"}
    opacity = {"condition": {"param": "at", "empty": False, "value": 0.5}, "value": 0}
    return {
        "transform": [
            {"filter": "isValid(datum.y)"},
            {"aggregate": [{"op": "values", "as": "rows"}], "groupby": ["x"]},
        ],
        "params": [{"name": "at", "select": nearest}],
        # To find the nearest line, Vega adds a cell around each line. The datum of the cell is the line.
        "mark": {"type": "rule", "color": "var(--muted)", "tooltip": {"expr": "datum.datum && datum.datum.rows"}},
        "encoding": {"x": x, "opacity": opacity},
    }


def _chapter(model: str, figures: Sequence[Figure]) -> str:
    return f"<h2>{escape(model or UNNAMED)}</h2>\n" + "".join(map(_article, figures))


def _article(figure: Figure) -> str:
    panels = "".join(_panel(figure, number, panel) for number, panel in enumerate(figure.panels, start=1))
    gaps = "".join(f"<li>{escape(gap)}</li>" for gap in figure.gaps)
    return (
        f'<article id="{figure.name}">\n<h3>{_headline(figure)}</h3>\n<figure>\n{_tools(figure)}'
        f'<div class="panels{_shape(figure.panels)}">{panels}</div>\n'
        f"<figcaption><p>{escape(figure.caption)}</p></figcaption>\n</figure>\n"
        + (f'<ul class="gaps">{gaps}</ul>\n' if gaps else "")
        + _numbers(figure.name, figure.table)
        + _provenance(figure.provenance)
        + "</article>\n"
    )


def _headline(figure: Figure) -> str:
    if not figure.variant:
        return escape(figure.heading)
    stage, comma, rest = figure.variant.partition(", ")
    variant = STAGE_WORDS.get(stage, stage) + comma + rest
    return f'{escape(figure.heading)}<span class="variant"> · {escape(variant)}</span>'


def _shape(panels: Sequence[Panel]) -> str:
    """Return the CSS class for the width of the panels."""
    if len(panels) == 1 or not all(isinstance(panel, HeatPanel) for panel in panels):
        return " three" if len(panels) % 3 == 0 else ""
    return " tall" if any(len(panel.columns) > 12 for panel in panels if isinstance(panel, HeatPanel)) else " maps"


def _panel(figure: Figure, number: int, panel: Panel) -> str:
    label = escape(f"{figure.title}: {panel.title}. The numbers are in the table below.")
    name = f"{figure.name}-{number}"
    rows = len(panel.rows) if isinstance(panel, HeatPanel) else 0
    height = f' style="height: {min(TALLEST, 90 + ROW_HEIGHT * rows)}px"' if rows > SMALL_ROWS else ""
    return (
        f'<div class="panel"><h4>{escape(panel.title)}</h4>'
        f'<button type="button" class="save" data-save="{name}" title="Save as SVG">SVG</button>'
        f'<div class="plot" id="{name}" role="img" aria-label="{label}"{height}></div></div>'
    )


def _tools(figure: Figure) -> str:
    """Return switches for the logarithmic axes."""
    found = [
        name
        for name in ("x", "y")
        if any(not isinstance(p, HeatPanel) and getattr(p, name).scale == "log" for p in figure.panels)
    ]
    buttons = "".join(
        f'<button type="button" data-figure="{figure.name}" data-axis="{name}">{name} axis: logarithmic</button>'
        for name in found
    )
    return f'<div class="tools">{buttons}</div>\n' if buttons else ""


def _numbers(name: str, table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f'<details><summary>Numbers</summary><div class="scroll" tabindex="0"><table id="table-{name}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<button type="button" data-table="{name}">Save this table as CSV</button></details>\n'
    )


def _provenance(provenance: Provenance) -> str:
    commands = "".join(f"<pre>{escape(command)}</pre>" for command in provenance.commands)
    sources = f"Files: {', '.join(provenance.files)}." if provenance.files else ""
    return (
        f'<p class="provenance">{escape(provenance.summary())}</p>\n'
        f"<details><summary>Command and files</summary>{commands}<p>{escape(sources)}</p></details>\n"
    )


def _footer(results: Results) -> str:
    count = len({file.path for group in results.groups for file in group.files})
    return f"<footer>Made by hf_posswap {__version__} from {count} result file{'' if count == 1 else 's'}.</footer>\n"

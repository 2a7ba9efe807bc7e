"""The report as one HTML page that works offline: plotly.js, which it contains, draws the figures; each has a table.

All values from files are escaped for HTML, and again for plotly (`plotly_figures`). A content security policy allows
only the page's own scripts, by their hashes, and no connections.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from hf_posswap.errors import MissingPackageError
from hf_posswap.reporting.colours import INK, Look
from hf_posswap.reporting.figures import Figure, HeatPanel, Panel, Provenance, Table
from hf_posswap.reporting.naming import STAGE_WORDS
from hf_posswap.reporting.plotly_figures import drawings
from hf_posswap.results.groups import Results
from hf_posswap.version import __version__

Chapters = Sequence[tuple[str, Sequence[Figure]]]

UNNAMED = "unnamed model"
TITLE = "Positional schemes: how far they read, and what they cost"
_DASH_ARRAYS = {"--": "6 3", "-.": "6 2 1 2", ":": "1.5 2"}
_MARKER_SHAPES = {
    "o": "M15 3.5a3.5 3.5 0 1 0 .01 0z",
    "s": "M12 4h6v6h-6z",
    "^": "M15 3l4 7h-8z",
    "v": "M15 11l4-7h-8z",
    "D": "M15 2.5l4.5 4.5-4.5 4.5-4.5-4.5z",
    "<": "M11 7l7-4v8z",
    ">": "M19 7l-7-4v8z",
    "P": "M13.5 3h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "X": "M11.5 5l2-2 1.5 1.5 1.5-1.5 2 2-1.5 2 1.5 2-2 2-1.5-1.5-1.5 1.5-2-2 1.5-2z",
}


def plotly_source() -> str:
    """Return the source of plotly.js.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingPackageError(
            'the report is drawn with plotly, which is not installed. Install it with pip install "hf_posswap[report]".'
        ) from error
    return str(get_plotlyjs())


def render_page(results: Results, chapters: Chapters, styles: Mapping[str, Look]) -> str:
    """Return the page. The same results give the same text.

    Args:
        results: the results of the folder.
        chapters: each model with its figures, whose names are unique.
        styles: style of each scheme, the same in every figure.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    library, program = plotly_source(), _asset("report.js")
    figures = [figure for _, own in chapters for figure in own]
    drawn = {figure.name: drawings(figure, styles) for figure in figures}
    return "".join([
        "<!DOCTYPE html>\n",
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(library, program)}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        f"<title>{escape(_title(results))}</title>\n<style>\n{_asset('report.css')}</style>\n</head>\n<body>\n",
        _top(results, chapters),
        _scheme_bar(results.keys(), styles),
        "<main>\n",
        *(_chapter(model, own) for model, own in chapters),
        "</main>\n",
        _footer(results),
        f'<script type="application/json" id="figures">{_json({"figures": drawn})}</script>\n',
        f'<script type="application/octet-stream" id="plotly">{_packed(library)}</script>\n',
        f"<script>{program}</script>\n</body>\n</html>\n",
    ])  # fmt: skip


def _title(results: Results) -> str:
    return f"{TITLE} ({', '.join(name or UNNAMED for name in results.models())})"


def _asset(name: str) -> str:
    return files("hf_posswap.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Return a policy that allows these scripts, and the inline styles and generated images that plotly needs."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """Return JSON in which no text can end the surrounding script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(source: str) -> str:
    return base64.b64encode(gzip.compress(source.encode("utf-8"), 9, mtime=0)).decode("ascii")


def _top(results: Results, chapters: Chapters) -> str:
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in results.notes)
    return (
        f'<header class="top">\n<h1>{escape(TITLE)}</h1>\n'
        '<p class="lead">Every figure is drawn from result files alone; its numbers, and where they come from, are '
        "under it. One scheme has one colour throughout. Point at a figure to read values, drag to zoom, double-click "
        "to go back.</p>\n"
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
    colour = "currentColor" if look.colour == INK else look.colour
    dash = _DASH_ARRAYS.get(look.line, "8 2 2 2 2 2") if isinstance(look.line, str) else "8 2 2 2 2 2"
    dashes = "" if look.line == "-" else f' stroke-dasharray="{dash}"'
    fill = "var(--paper)" if look.hollow else colour
    return (
        f'<svg viewBox="0 0 30 14" aria-hidden="true"><path d="M0 7h30" stroke="{colour}" stroke-width="3"{dashes}/>'
        f'<path d="{_MARKER_SHAPES.get(look.marker, _MARKER_SHAPES["o"])}" fill="{fill}" stroke="{colour}"/></svg>'
    )


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
    if not all(isinstance(panel, HeatPanel) for panel in panels):
        return " three" if len(panels) % 3 == 0 else ""
    return " tall" if any(len(panel.columns) > 12 for panel in panels if isinstance(panel, HeatPanel)) else " maps"


def _panel(figure: Figure, number: int, panel: Panel) -> str:
    label = escape(f"{figure.title}: {panel.title}. The numbers are in the table below.")
    return (
        f'<div class="panel"><h4>{escape(panel.title)}</h4>'
        f'<div class="plot" id="{figure.name}-{number}" role="img" aria-label="{label}"></div></div>'
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

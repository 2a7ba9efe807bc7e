"""The figure of a comparison: perplexity against length, one line for each scheme, one panel for each protocol."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.reporting.colours import STOCK, Look, looks

PANEL_TITLES = {
    "windows": "Non-overlapping windows",
    "same-targets": "Same target tokens, ever longer context",
}
INK, MUTED, GRID = "#222222", "#666666", "#E4E4E4"
BEYOND_AXIS = 1.5
"""A train length further out than this many times the longest length is pointed at instead of drawn."""


def draw_comparison(result: Mapping[str, Any], path: Path) -> None:
    """Draw the content of a compare.json into an image file; the suffix decides the format (PNG, SVG, PDF)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result["rows"]
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    protocols = [protocol for protocol in PANEL_TITLES if any(row["protocol"] == protocol for row in rows)]
    figure = Figure(figsize=(4.6 * len(protocols) + 1.9, 4.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    styles = looks(schemes)
    for panel, protocol in zip(panels, protocols, strict=True):
        own = [row for row in rows if row["protocol"] == protocol]
        _draw_panel(panel, own, styles, result.get("train_length"))
        panel.set_title(PANEL_TITLES[protocol], fontsize=11, color=INK, loc="left", pad=16)
    panels[0].set_ylabel("perplexity (log)", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, labelcolor=INK, handlelength=3.2)
    figure.suptitle(f"Perplexity of {result['model']} against length, by positional scheme", color=INK, fontsize=13)
    figure.supxlabel(_caption(result), fontsize=7.5, color=MUTED)
    figure.savefig(path, dpi=160)


def _draw_panel(panel: Any, rows: Sequence[Mapping[str, Any]], styles: Mapping[str, Look], train_length: Any) -> None:
    """Draw one protocol."""
    lengths = sorted({row["length"] for row in rows})
    curves = {
        scheme: [row for row in rows if row["scheme"] == scheme and row["perplexity"] is not None] for scheme in styles
    }
    for number, (scheme, curve) in enumerate(curves.items()):
        if scheme == STOCK:
            _draw_stock(panel, curve, styles[scheme])
        else:
            _draw_scheme(panel, _label(scheme, curves), curve, styles[scheme], number / len(curves))
    _mark_ends(panel, rows, curves, styles, lengths[-1])
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(lengths, [str(length) for length in lengths])
    panel.minorticks_off()
    _label_perplexities(panel)
    panel.set_xlabel("tokens read at once", color=INK)
    _mark_train_length(panel, train_length, lengths)
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=MUTED, labelsize=9)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#BBBBBB")


def _draw_stock(panel: Any, rows: Sequence[Mapping[str, Any]], look: Look) -> None:
    """Draw the stock model, wide and pale at the bottom, so that a scheme equal to it shows on top."""
    panel.plot(
        [row["length"] for row in rows],
        [row["perplexity"] for row in rows],
        color=look.colour,
        alpha=0.28,
        linewidth=8,
        solid_capstyle="round",
        label=STOCK,
        zorder=2,
    )


def _draw_scheme(panel: Any, label: str, rows: Sequence[Mapping[str, Any]], look: Look, order: float) -> None:
    """Draw one scheme with its interval.

    Each further line is thinner than the last, so that lines on top of one another all show. `order` runs from 0 for
    the first scheme to 1.
    """
    panel.plot(
        [row["length"] for row in rows],
        [row["perplexity"] for row in rows],
        color=look.colour,
        linestyle=look.line,
        linewidth=3.6 - 2.4 * order,
        marker=look.marker,
        markersize=8 - 4 * order,
        markerfacecolor=look.colour if look.line == "-" else "white",
        label=label,
        zorder=3,
    )
    known = [row for row in rows if row["loss_low"] is not None]
    panel.fill_between(
        [row["length"] for row in known],
        [math.exp(row["loss_low"]) for row in known],
        [math.exp(row["loss_high"]) for row in known],
        color=look.colour,
        alpha=0.1,
        linewidth=0,
        zorder=1,
    )


def _label(scheme: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Name a scheme in the legend, and the first one before it whose curve it covers."""

    def points(name: str) -> list[tuple[int, float]]:
        return [(row["length"], float(f"{row['perplexity']:.5g}")) for row in curves[name]]

    for other in curves:
        if other == scheme:
            break
        if points(scheme) and points(other) == points(scheme):
            return f"{scheme} (= {other})"
    return scheme


def _mark_ends(
    panel: Any,
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    styles: Mapping[str, Look],
    longest: int,
) -> None:
    """Mark where lines end because their scheme goes no further, and say why, once for lines that end together."""
    ends: dict[tuple[int, str, str], list[str]] = {}
    for scheme, curve in curves.items():
        if curve and curve[-1]["length"] < longest:
            last = curve[-1]
            note = _note_after(rows, scheme, last["length"])
            ends.setdefault((last["length"], f"{last['perplexity']:.2g}", note), []).append(scheme)
    for (length, _, note), schemes in ends.items():
        colour = styles[schemes[0]].colour
        height = curves[schemes[0]][-1]["perplexity"]
        panel.plot(length, height, "x", color=colour, markersize=10, markeredgewidth=2, zorder=4)
        panel.annotate(
            f"{', '.join(schemes)}: {_shortened(note)}",
            (length, height),
            xytext=(8, 7),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
        )


def _mark_train_length(panel: Any, train_length: int | None, lengths: Sequence[int]) -> None:
    """Draw a line at the train length, or point to where it lies outside the axis."""
    if train_length is None:
        return
    text = f"train length {train_length}"
    position: float = train_length
    if train_length > BEYOND_AXIS * lengths[-1]:
        text, position = f"{text} →", lengths[-1]
    elif train_length * BEYOND_AXIS < lengths[0]:
        text, position = f"← {text}", lengths[0]
    else:
        panel.axvline(train_length, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    panel.annotate(
        text,
        (position, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="left" if position == lengths[0] else "right" if position == lengths[-1] else "center",
        va="bottom",
        fontsize=8,
        color=MUTED,
    )


def _label_perplexities(panel: Any) -> None:
    """Put ticks at 1, 2 and 5 times powers of ten, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=20))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))


def _note_after(rows: Sequence[Mapping[str, Any]], scheme: str, length: int) -> str:
    """Note of a scheme's first length after `length`."""
    return next((row["note"] for row in rows if row["scheme"] == scheme and row["length"] > length), "")


def _shortened(note: str, limit: int = 40) -> str:
    first = note.splitlines()[0] if note else "not measured"
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _caption(result: Mapping[str, Any]) -> str:
    """What was measured on what, so that the image explains itself when it travels alone."""
    texts = ", ".join(text["name"] for text in result.get("texts", []))
    settings, environment = result.get("settings", {}), result.get("environment", {})
    versions = environment.get("versions", {})
    unmeasured = dict.fromkeys(
        row["scheme"]
        for row in result["rows"]
        if not any(other["perplexity"] is not None for other in result["rows"] if other["scheme"] == row["scheme"])
    )
    lines = [
        f"Text: {texts}. About {settings.get('tokens', '?')} tokens read per length. Bands: 95% bootstrap over "
        f"windows, seed {result.get('seed')}. {settings.get('dtype', '')}, "
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}.",
    ]
    if unmeasured:
        lines.append(f"Not measured: {', '.join(unmeasured)} (see compare.csv).")
    return "\n".join(lines)

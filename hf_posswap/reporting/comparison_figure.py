"""The figure of a comparison: perplexity against length, a panel for each protocol, and stage by stage."""

<<<<<<< HEAD
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_posswap.reporting.colours import STOCK, Look, looks
from hf_posswap.reporting.comparison_curves import Curve, curves_of, final_curves
from hf_posswap.reporting.stages_panel import draw_stages, stages_in

PANEL_TITLES = {
    "windows": "Non-overlapping windows",
    "same-targets": "Same target tokens, ever longer context",
}
INK, MUTED, GRID = "#222222", "#666666", "#E4E4E4"
BEYOND_AXIS = 1.5
"""A train length further out than this many times the longest length is pointed at instead of drawn."""
=======
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_posswap.reporting.images import draw
from hf_posswap.reporting.length_figure import length_figure
from hf_posswap.reporting.results import as_group, result_file
>>>>>>> 2737a65 (hf-posswap report: every figure of a results folder as one page and as images; hf-posswap bias)


def draw_comparison(result: Mapping[str, Any], path: Path) -> None:
    """Draw the content of a compare.json into an image file; the suffix decides the format (PNG, SVG, PDF).
<<<<<<< HEAD

    The last stage of each scheme is drawn as a line with markers, earlier ones are thin and pale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result["rows"]
    protocols = [protocol for protocol in PANEL_TITLES if any(row["protocol"] == protocol for row in rows)]
    staged = len(stages_in(rows)) > 1
    count = len(protocols) + staged
    figure = Figure(figsize=(4.6 * count + 2.6, 4.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    styles = looks(list(dict.fromkeys(row["scheme"] for row in rows)))
    for panel, protocol in zip(panels, protocols, strict=False):
        _draw_panel(panel, curves_of(rows, protocol), styles, result.get("train_length"))
        _finish(panel, PANEL_TITLES[protocol])
    if staged:
        length = draw_stages(panels[-1], rows, protocols[-1], result.get("train_length"), styles)
        _finish(panels[-1], f"Stage by stage, {length} tokens read at once")
    panels[0].set_ylabel("perplexity (log)", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, labelcolor=INK, handlelength=3.2)
    figure.suptitle(f"Perplexity of {result['model']} against length, by positional scheme", color=INK, fontsize=13)
    figure.supxlabel(_caption(result, staged), fontsize=7.5, color=MUTED)
    figure.savefig(path, dpi=160)


def _draw_panel(panel: Any, curves: Sequence[Curve], styles: Mapping[str, Look], train_length: Any) -> None:
    """Draw one protocol."""
    lengths = sorted({point.length for curve in curves for point in curve.points})
    final = final_curves(curves)
    for curve in curves:
        if curve not in final:
            _draw_earlier(panel, curve, styles[curve.scheme])
    for number, curve in enumerate(final):
        if curve.scheme != STOCK:
            _draw_scheme(panel, _label(curve, final), curve, styles[curve.scheme], number / len(final))
        elif curve.stage == STOCK:
            _draw_stock(panel, curve, styles[STOCK])
        else:
            _draw_control(panel, curve, styles[STOCK])
    _mark_ends(panel, final, styles, lengths[-1])
    panel.set_xscale("log", base=2)
    panel.set_xticks(lengths, [str(length) for length in lengths])
    panel.set_xlabel("tokens read at once", color=INK)
    _mark_train_length(panel, train_length, lengths)


def _finish(panel: Any, title: str) -> None:
    """Give a panel what all have in common."""
    panel.set_title(title, fontsize=11, color=INK, loc="left", pad=16)
    panel.set_yscale("log")
    panel.minorticks_off()
    _label_perplexities(panel)
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=MUTED, labelsize=9)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#BBBBBB")


def _plot(panel: Any, curve: Curve, **style: Any) -> None:
    points = curve.measured
    panel.plot([point.length for point in points], [point.perplexity for point in points], **style)


def _draw_stock(panel: Any, curve: Curve, look: Look) -> None:
    """Draw the stock model, wide and pale at the bottom, so that a scheme equal to it shows on top."""
    _plot(panel, curve, color=look.colour, alpha=0.28, linewidth=8, solid_capstyle="round", label=curve.stage, zorder=2)


def _draw_control(panel: Any, curve: Curve, look: Look) -> None:
    """Draw the stock model that was healed on the same tokens."""
    _plot(panel, curve, color=look.colour, linewidth=1.6, linestyle=(0, (1, 1.2)), label=curve.stage, zorder=2.5)


def _draw_earlier(panel: Any, curve: Curve, look: Look) -> None:
    """Draw a stage that a scheme has left behind."""
    _plot(panel, curve, color=look.colour, linewidth=1.1, alpha=0.35, linestyle=look.line, zorder=1.5)


def _draw_scheme(panel: Any, label: str, curve: Curve, look: Look, order: float) -> None:
    """Draw one scheme with its interval.

    Each further line is thinner than the last, so that lines on top of one another all show. `order` runs from 0 for
    the first scheme to 1.
    """
    _plot(
        panel,
        curve,
        color=look.colour,
        linestyle=look.line,
        linewidth=3.6 - 2.4 * order,
        marker=look.marker,
        markersize=8 - 4 * order,
        markerfacecolor=look.colour if look.line == "-" else "white",
        label=label,
        zorder=3,
    )
    known = [point for point in curve.points if point.low is not None]
    panel.fill_between(
        [point.length for point in known],
        [point.low for point in known],
        [point.high for point in known],
        color=look.colour,
        alpha=0.1,
        linewidth=0,
        zorder=1,
    )


def _label(curve: Curve, curves: Sequence[Curve]) -> str:
    """Name a curve in the legend, with its stage if it is not just swapped, and the first curve that it covers."""

    def points(of: Curve) -> list[tuple[int, str]]:
        return [(point.length, f"{point.perplexity:.5g}") for point in of.measured]

    name = curve.scheme if curve.stage == "swapped" else f"{curve.scheme}, {curve.stage}"
    covered = next(other for other in curves if points(other) == points(curve))
    if covered is curve or not covered.measured:
        return name
    return f"{name} (= {covered.scheme})"


def _mark_ends(panel: Any, curves: Sequence[Curve], styles: Mapping[str, Look], longest: int) -> None:
    """Mark where lines end because their scheme goes no further, and say why, once for lines that end together."""
    ends: dict[tuple[int, str, str], list[Curve]] = {}
    for curve in curves:
        if curve.measured and curve.measured[-1].length < longest:
            last = curve.measured[-1]
            note = next((point.note for point in curve.points if point.length > last.length), "")
            ends.setdefault((last.length, f"{last.perplexity:.2g}", note), []).append(curve)
    for (length, _, note), ending in ends.items():
        colour = styles[ending[0].scheme].colour
        height = ending[0].measured[-1].perplexity
        panel.plot(length, height, "x", color=colour, markersize=10, markeredgewidth=2, zorder=4)
        names = ", ".join(curve.stage if curve.scheme == STOCK else curve.scheme for curve in ending)
        panel.annotate(
            f"{names}: {_shortened(note)}",
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


def _shortened(note: str, limit: int = 40) -> str:
    first = note.splitlines()[0] if note else "not measured"
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _caption(result: Mapping[str, Any], staged: bool) -> str:
    """What was measured on what, so that the image explains itself when it travels alone."""
    texts = ", ".join(text["name"] for text in result.get("texts", []))
    settings, environment = result.get("settings", {}), result.get("environment", {})
    versions = environment.get("versions", {})
    seeds = settings.get("seeds", 1)
    bands = "95% bootstrap over windows" if seeds == 1 else f"range of {seeds} seeds, lines their mean"
    lines = [
        f"Text: {texts}. About {settings.get('tokens', '?')} tokens read per length. Bands: {bands}, "
        f"seed {result.get('seed')}. {settings.get('dtype', '')}, "
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}.",
    ]
    healing = settings.get("healing")
    if healing is not None:
        lines.append(
            f"Healed on {healing['tokens']:,} tokens of other texts, distilled from the stock model "
            f"(weight {healing['distill']:g}); the control is the stock model trained on the same tokens."
        )
    if staged:
        lines[-1] += " Thin lines: earlier stages."
    measured = {row["scheme"] for row in result["rows"] if row["perplexity"] is not None}
    unmeasured = [name for name in dict.fromkeys(row["scheme"] for row in result["rows"]) if name not in measured]
    if unmeasured:
        lines.append(f"Not measured: {', '.join(unmeasured)} (see compare.csv).")
    return "\n".join(lines)
=======

    Of several stages the last one is drawn; `hf-posswap report` draws them all.

    Raises:
        ResultsError: the content is no comparison.
    """
    group = as_group(result_file(result))
    draw(length_figure(group, (group.stages() or [""])[-1]), path)
>>>>>>> 2737a65 (hf-posswap report: every figure of a results folder as one page and as images; hf-posswap bias)

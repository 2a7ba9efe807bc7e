"""The panel that shows what each stage gives: swapped, calibrated, healed, beside stock and its control."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_posswap.reporting.colours import STOCK, Look
from hf_posswap.reporting.comparison_curves import STAGE_ORDER, curves_of


def stages_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the stages of swapped models that were measured, in their order."""
    found = {row["stage"] for row in rows if row["scheme"] != STOCK and row["perplexity"] is not None}
    return sorted(found, key=STAGE_ORDER.index)


def draw_stages(
    panel: Any,
    rows: Sequence[Mapping[str, Any]],
    protocol: str,
    train_length: int | None,
    styles: Mapping[str, Look],
) -> int:
    """Draw the perplexity at each stage, a line for each scheme, and return the length at which it was measured.

    That is the longest that the stock model was trained to read, or the shortest measured if all are longer.
    """
    stages = stages_in(rows)
    lengths = sorted({row["length"] for row in rows})
    length = max((each for each in lengths if train_length is None or each <= train_length), default=lengths[0])
    places = {stage: place for place, stage in enumerate(stages)}
    heights: dict[str, dict[str, float]] = {}
    for curve in curves_of(rows, protocol):
        for point in curve.measured:
            if point.length == length and point.perplexity is not None:
                heights.setdefault(curve.scheme, {})[curve.stage] = point.perplexity
    for scheme, values in heights.items():
        if scheme == STOCK:
            _draw_levels(panel, values, styles[STOCK])
            continue
        look = styles[scheme]
        panel.plot(
            [places[stage] for stage in values],
            list(values.values()),
            color=look.colour,
            linestyle=look.line,
            linewidth=1.8,
            marker=look.marker,
            markersize=7,
            markerfacecolor=look.colour if look.line == "-" else "white",
            zorder=3,
        )
    panel.set_xticks(range(len(stages)), stages)
    panel.set_xlim(-0.4, len(stages) - 0.6)
    return length


def _draw_levels(panel: Any, values: Mapping[str, float], look: Look) -> None:
    """Draw stock and control as levels, in the looks they have in the other panels."""
    if STOCK in values:
        panel.axhline(values[STOCK], color=look.colour, alpha=0.28, linewidth=8, zorder=2)
    if "control" in values:
        panel.axhline(values["control"], color=look.colour, linewidth=1.6, linestyle=(0, (1, 1.2)), zorder=2.5)

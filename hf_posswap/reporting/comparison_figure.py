"""The figure of a comparison: each scheme at its last stage in a panel for each protocol, and panels by stage."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hf_posswap.reporting.figures import (
    Figure,
    LinePanel,
    Series,
    common_axis,
)
from hf_posswap.reporting.images import draw
from hf_posswap.reporting.length_figure import figure_of_rows
from hf_posswap.reporting.naming import model_name
from hf_posswap.reporting.quantities import quantity_of
from hf_posswap.reporting.stage_figure import shown_lengths, stage_panel
from hf_posswap.results.groups import Group, as_group
from hf_posswap.results.kinds import CONTROL, KEY_TOKENS, STOCK
from hf_posswap.results.reading import ResultFile


def draw_comparison(result: ResultFile, path: Path) -> None:
    """Draw a comparison into an image file; the suffix decides the format (PNG, SVG, PDF)."""
    draw(comparison_figure(as_group(result)), path)


def comparison_figure(group: Group) -> Figure:
    """Return the whole comparison in one figure; `hf-posswap report` makes one figure for each stage instead."""
    last = _last_stages(group)
    rows = [row for row in group.rows if row["stage"] in (STOCK, CONTROL, last.get(row["scheme"]))]
    quantity = quantity_of(group.rows)
    title = f"{quantity.subject} of {model_name(group)} against length, by positional scheme"
    figure = figure_of_rows(group, rows, title)
    panels = [_named(panel, last) for panel in figure.panels if isinstance(panel, LinePanel)]
    if len(group.stages()) > 1:
        protocol = next(row["protocol"] for row in reversed(rows) if row["protocol"] != KEY_TOKENS)
        lengths = shown_lengths(group, protocol)
        if lengths:
            panel = stage_panel(group, protocol, lengths[0])
            panels.append(replace(_named(panel, last), title=f"Stage by stage, {panel.title.rpartition(', ')[2]}"))
    return replace(figure, panels=common_axis(panels) if quantity.scale == "log" else tuple(panels))


def _last_stages(group: Group) -> dict[str, str]:
    """Return the last stage of each scheme that has a value, or its first stage if none has."""
    last: dict[str, str] = {}
    for stage in group.stages():
        for row in group.rows:
            if row["stage"] == stage and (row["loss"] is not None or row["scheme"] not in last):
                last[row["scheme"]] = stage
    return last


def _named(panel: LinePanel, last: Mapping[str, str]) -> LinePanel:
    """Return the panel with the stage added to each scheme's label, except the stage "swapped"."""

    def named(series: Series) -> Series:
        stage = last.get(series.key, "")
        if series.key in (STOCK, CONTROL) or stage == "swapped":
            return series
        return replace(series, label=f"{series.label}, {stage}")

    return replace(panel, series=tuple(named(series) for series in panel.series))

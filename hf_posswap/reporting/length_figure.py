"""Perplexity or agreement by length: a panel for each protocol, a line for each scheme, a figure for each stage."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hf_posswap.reporting.figures import (
    Figure,
    Guide,
    LinePanel,
    Table,
    common_axis,
    drawable,
    draws,
    numbered_axis,
    plain,
)
from hf_posswap.reporting.lines import SEVERAL_SEEDS, any_several_seeds, gap_sentences, line_series, marked_if_equal
from hf_posswap.reporting.naming import model_name, protocol_title, slug, staged, variant
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.reporting.quantities import Quantity, quantity_of
from hf_posswap.reporting.stage_figure import stage_figures
from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import AGREEMENT, CONTROL, KEY_TOKENS, LENGTHS, PROTOCOL_WORDS, Row
from hf_posswap.results.points import Point, by_key, points

Lines = dict[str, list[Point]]


@draws(LENGTHS.family, AGREEMENT)
def stage_and_length_figures(group: Group) -> list[Figure]:
    """Return the figure of the stages side by side, if there are several, and a figure for each stage."""
    return [*stage_figures(group), *length_figures(group)]


def length_figures(group: Group) -> list[Figure]:
    """Return a figure for each measured stage, each with the stock model and its control."""
    return [length_figure(group, stage) for stage in group.stages() or [""]]


def length_figure(group: Group, stage: str) -> Figure:
    """Return the figure of one stage; with an empty `stage`, of the stock model alone."""
    rows = group.of_stage(stage) if stage else list(group.rows)
    figure = figure_of_rows(group, rows, "")
    return replace(
        figure,
        name=slug("length", model_name(group), stage),
        title=staged(f"{quantity_of(rows).subject} of {model_name(group)} against length", stage),
        variant=variant(group, stage),
    )


def figure_of_rows(group: Group, rows: Sequence[Row], title: str) -> Figure:
    """Return the figure of some rows of a group, with at most one stage of each scheme."""
    quantity = quantity_of(rows)
    protocols = [name for name in PROTOCOL_WORDS if any(row["protocol"] == name for row in rows)]
    protocols += sorted({row["protocol"] for row in rows} - set(protocols))
    lines = {
        protocol: lines_of([row for row in rows if row["protocol"] == protocol], "loss", "loss_low", "loss_high")
        for protocol in protocols
    }
    caption = (
        f"{quantity.subject} {'on a logarithmic axis ' if quantity.scale == 'log' else ''}against the number of tokens "
        "read at once. Bands are the intervals of the result file (95% bootstrap over windows); × marks where a line "
        "ends because its scheme goes no further."
    )
    if any(CONTROL in own for own in lines.values()):
        caption += " The control is the stock model, trained on the tokens that healed the others."
    if KEY_TOKENS in lines:
        caption += " Key tokens are those that the stock model predicts much better from long context than from short."
    if any_several_seeds(line for own in lines.values() for line in own.values()):
        caption += f" {SEVERAL_SEEDS}"
    return Figure(
        name=slug("length", model_name(group)),
        title=title,
        heading=f"{quantity.subject} against length",
        variant="",
        panels=_common(
            [_panel(protocol, own, group.train_length, quantity) for protocol, own in lines.items()], quantity
        ),
        caption=caption,
        table=_table(lines, quantity),
        provenance=provenance_of(group),
        gaps=tuple(dict.fromkeys(gap_sentences((k, p) for own in lines.values() for k, p in own.items()))),
    )


def _common(panels: Sequence[LinePanel], quantity: Quantity) -> tuple[LinePanel, ...]:
    shown = drawable(panels)
    return common_axis(shown) if quantity.scale == "log" else shown


def lines_of(rows: Sequence[Row], value: str, low: str = "", high: str = "", x: str = "length") -> Lines:
    """Return the points of each scheme."""
    return {key: points(own, value, low, high, x) for key, own in by_key(rows).items()}


def train_length_guide(train_length: int | None) -> tuple[Guide, ...]:
    """Return a guide at the train length, if it is known."""
    return () if train_length is None else (Guide("x", train_length, f"train length {train_length}"),)


def _panel(
    protocol: str, lines: Mapping[str, Sequence[Point]], train_length: int | None, quantity: Quantity
) -> LinePanel:
    def hover(point: Point) -> str:
        return quantity.hover(point) + (f", {point.seeds} seeds" if point.seeds > 1 else "")

    series = marked_if_equal([line_series(key, line, hover, quantity.shown) for key, line in lines.items()])
    lengths = numbered_axis("tokens read at once", (point.x for line in lines.values() for point in line))
    return LinePanel(protocol_title(protocol), lengths, quantity.axis, series, train_length_guide(train_length))


def _table(lines: Mapping[str, Lines], quantity: Quantity) -> Table:
    """Return the values by protocol, scheme and length."""
    lengths = sorted({point.x for own in lines.values() for line in own.values() for point in line})
    rows = []
    for protocol, own in lines.items():
        for key, line in own.items():
            cells = {point.x: quantity.interval(point) for point in line}
            rows.append((protocol, key, *(cells.get(length, "") for length in lengths)))
    return Table(("protocol", "scheme", *(plain(length) for length in lengths)), tuple(rows))

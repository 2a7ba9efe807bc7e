"""Retrieval on long documents by the number of tokens read: a panel for each metric, a line for each scheme."""

from collections.abc import Mapping

from hf_posswap.reporting.figures import (
    Axis,
    Figure,
    LinePanel,
    Table,
    drawable,
    draws,
    numbered_axis,
    plain,
)
from hf_posswap.reporting.length_figure import Lines, lines_of, train_length_guide
from hf_posswap.reporting.lines import (
    SEVERAL_SEEDS,
    any_several_seeds,
    gap_sentences,
    interval,
    line_series,
    marked_if_equal,
)
from hf_posswap.reporting.naming import model_name, slug, staged, variant
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import RETRIEVAL
from hf_posswap.results.points import Point


@draws(RETRIEVAL.family)
def retrieval_figures(group: Group) -> list[Figure]:
    """Return a figure for each measured stage, each with the stock model and its control."""
    return [_figure(group, stage) for stage in group.stages() or [""]]


def _figure(group: Group, stage: str) -> Figure:
    rows = group.of_stage(stage) if stage else list(group.rows)
    lines = {
        metric: lines_of([row for row in rows if row["metric"] == metric], "value", "low", "high")
        for metric in dict.fromkeys(row["metric"] for row in rows)
    }
    queries = sorted({row["queries"] for row in rows if row.get("queries")})
    caption = (
        "How well passages of long documents are found, against the number of tokens read of each passage; the rest "
        "is cut off. Higher is better." + (f" {plain(queries[-1])} queries." if queries else "")
    )
    if any_several_seeds(line for own in lines.values() for line in own.values()):
        caption += f" {SEVERAL_SEEDS}"
    return Figure(
        name=slug("retrieval", model_name(group), stage),
        title=staged(f"Retrieval with {model_name(group)} by tokens read", stage),
        heading="Retrieval by tokens read",
        variant=variant(group, stage),
        panels=drawable([_panel(metric, own, group.train_length) for metric, own in lines.items()]),
        caption=caption,
        table=_table(lines),
        provenance=provenance_of(group),
        gaps=tuple(dict.fromkeys(gap_sentences((k, p) for own in lines.values() for k, p in own.items()))),
    )


def _panel(metric: str, lines: Lines, train_length: int | None) -> LinePanel:
    series = marked_if_equal([line_series(key, line, _hover) for key, line in lines.items()])
    lengths = numbered_axis("tokens read of a document", (point.x for line in lines.values() for point in line))
    return LinePanel(metric, lengths, Axis(metric), series, train_length_guide(train_length))


def _hover(point: Point) -> str:
    return interval(point.y, point.low, point.high)


def _table(lines: Mapping[str, Lines]) -> Table:
    lengths = sorted({point.x for own in lines.values() for line in own.values() for point in line})
    rows = []
    for metric, own in lines.items():
        for key, line in own.items():
            cells = {point.x: interval(point.y, point.low, point.high) for point in line}
            rows.append((metric, key, *(cells.get(length, "") for length in lengths)))
    return Table(("metric", "scheme", *(plain(length) for length in lengths)), tuple(rows))

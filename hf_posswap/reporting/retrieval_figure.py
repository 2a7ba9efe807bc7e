"""Retrieval on long documents, of needles, and RULER's tasks, by length: a panel for each metric or task.

Each panel has a line for each scheme.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hf_posswap.reporting.figures import (
    Axis,
    Figure,
    Guide,
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
from hf_posswap.results.kinds import NEEDLES, RETRIEVAL, Row
from hf_posswap.results.points import Point


@dataclass(frozen=True)
class MetricFigure:
    """The content of a figure with a panel for each metric.

    Attributes:
        name: beginning of the figure's name.
        heading: the figure's heading.
        title: its title; `{}` stands for the model's name.
        caption: explanation, in sentences.
        metric: function from a row to its metric, the panel's title.
        value: column of the values.
        low: column of the lower ends of intervals.
        high: column of the upper ends.
        length: title of the horizontal axis.
        quantity: title of the vertical axis; empty: the metric.
        counted: the column that counts what a value stands for, and its name in the plural.
    """

    name: str
    heading: str
    title: str
    caption: str
    metric: Callable[[Row], str]
    value: str
    low: str
    high: str
    length: str
    quantity: str
    counted: tuple[str, str]

    def figure(self, group: Group, stage: str) -> Figure | None:
        """Return the figure of one stage, with the stock model and its control; None if no row has a value."""
        rows = group.of_stage(stage) if stage else list(group.rows)
        if not any(row.get(self.value) is not None for row in rows):
            return None
        lines = {
            metric: lines_of([row for row in rows if self.metric(row) == metric], self.value, self.low, self.high)
            for metric in dict.fromkeys(map(self.metric, rows))
        }
        column, things = self.counted
        counts = sorted({row[column] for row in rows if row.get(column)})
        caption = self.caption + (f" {plain(counts[-1])} {things}." if counts else "")
        if any_several_seeds(line for own in lines.values() for line in own.values()):
            caption += f" {SEVERAL_SEEDS}"
        return Figure(
            name=slug(self.name, model_name(group), stage),
            title=staged(self.title.format(model_name(group)), stage),
            heading=self.heading,
            variant=variant(group, stage),
            panels=drawable([self._panel(metric, own, rows, group.train_length) for metric, own in lines.items()]),
            caption=caption,
            table=_table(lines),
            provenance=provenance_of(group),
            gaps=tuple(dict.fromkeys(gap_sentences((k, p) for own in lines.values() for k, p in own.items()))),
        )

    def _panel(self, metric: str, lines: Lines, rows: Sequence[Row], train_length: int | None) -> LinePanel:
        series = marked_if_equal([line_series(key, line, _hover) for key, line in lines.items()])
        lengths = numbered_axis(self.length, (point.x for line in lines.values() for point in line))
        chances = {row["chance"] for row in rows if self.metric(row) == metric and row.get("chance") is not None}
        guides = (*train_length_guide(train_length), *(Guide("y", chance, "chance") for chance in sorted(chances)))
        return LinePanel(metric, lengths, Axis(self.quantity or metric), series, guides)


RETRIEVED = MetricFigure(
    name="retrieval",
    heading="Retrieval by tokens read",
    title="Retrieval with {} by tokens read",
    caption="How well passages of long documents are found, against the number of tokens read of each passage; the "
    "rest is cut off. Higher is better.",
    metric=lambda row: str(row["metric"]),
    value="value",
    low="low",
    high="high",
    length="tokens read of a document",
    quantity="",
    counted=("queries", "queries"),
)
FOUND_NEEDLES = MetricFigure(
    name="needles",
    heading="Retrieval of needles by length",
    title="Needles found with {} by length of the documents",
    caption="How well documents are found that hide one sentence, a pass key among repeated sentences or a fact in a "
    "book, against the length of the documents. Higher is better.",
    metric=lambda row: f"{row['task']}, {row['metric']}",
    value="value",
    low="low",
    high="high",
    length="tokens of a document",
    quantity="",
    counted=("queries", "queries"),
)
RULER_GAIN = MetricFigure(
    name="ruler-gain",
    heading="Log-probability of RULER's answers against chance",
    title="Log-probability of RULER's answers against chance in {}",
    caption="The mean log-probability of a token of the right answer minus that of a wrong answer of the same form; "
    "higher is better, and 0 is a model that does not use the text. It tells models apart that hardly ever give an "
    "exact answer.",
    metric=lambda row: str(row["task"]),
    value="gain",
    low="gain_low",
    high="gain_high",
    length="tokens of prompt and answer",
    quantity="nats a token above chance",
    counted=("trials", "prompts for each point"),
)


@draws(RETRIEVAL.family)
def retrieval_figures(group: Group) -> list[Figure]:
    """Return a figure for each measured stage, each with the stock model and its control."""
    return figures_of(RETRIEVED, group)


@draws(NEEDLES.family)
def needle_figures(group: Group) -> list[Figure]:
    """Return a figure for each measured stage, each with the stock model and its control."""
    return figures_of(FOUND_NEEDLES, group)


def figures_of(metrics: MetricFigure, group: Group) -> list[Figure]:
    """Return the figures of a group's stages that have values."""
    made = (metrics.figure(group, stage) for stage in group.stages() or [""])
    return [figure for figure in made if figure is not None]


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

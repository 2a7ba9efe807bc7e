"""RULER's tasks: the share of answers found, and the log-probability of the answers against chance, by length."""

from collections.abc import Sequence

from hf_posswap.reporting.figures import Figure, HeatPanel, Table, Value, category_axis, draws, plain
from hf_posswap.reporting.lines import gap_sentences
from hf_posswap.reporting.naming import model_name, slug, staged, variant
from hf_posswap.reporting.passkey_figure import COLOURS
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.reporting.retrieval_figure import RULER_GAIN
from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import RULER, Row
from hf_posswap.results.points import by_key, points


@draws(RULER.family)
def ruler_figures(group: Group) -> list[Figure]:
    """Return the figures of each measured stage, each with the stock model and its control."""
    made = [
        figure
        for stage in group.stages() or [""]
        for figure in (_shares(group, stage), RULER_GAIN.figure(group, stage))
    ]
    return [figure for figure in made if figure is not None]


def _shares(group: Group, stage: str) -> Figure:
    rows = group.of_stage(stage) if stage else list(group.rows)
    lengths = sorted({row["length"] for row in rows})
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    by_scheme = by_key(rows)
    found = {
        key: [[_share(own, task, length) for length in lengths] for task in tasks] for key, own in by_scheme.items()
    }
    return Figure(
        name=slug("ruler", model_name(group), stage),
        title=staged(f"RULER's tasks with {model_name(group)}", stage),
        heading="RULER's tasks",
        variant=variant(group, stage),
        panels=tuple(_panel(key, values, tasks, lengths) for key, values in found.items()),
        caption="The share of the right answers that occur in the text that the model writes, by RULER's scoring "
        "rule, in percent. Empty cells were not measured.",
        table=Table(
            ("scheme", "task", *(plain(length) for length in lengths)),
            tuple(
                (key, task, *("—" if value is None else f"{value:.0%}" for value in line))
                for key, values in found.items()
                for task, line in zip(tasks, values, strict=True)
            ),
        ),
        provenance=provenance_of(group),
        gaps=tuple(
            dict.fromkeys(
                gap_sentences(
                    (
                        key,
                        [
                            point
                            for point in points([row for row in own if row["task"] == task], "score")
                            if point.y is None
                        ],
                    )
                    for key, own in by_scheme.items()
                    for task in tasks
                )
            )
        ),
    )


def _share(rows: Sequence[Row], task: str, length: float) -> Value:
    """Return the mean score of a task at a length over all seeds."""
    scores = [
        row["score"] for row in rows if (row["task"], row["length"]) == (task, length) and row["score"] is not None
    ]
    return sum(scores) / len(scores) if scores else None


def _panel(key: str, values: Sequence[Sequence[Value]], tasks: Sequence[str], lengths: Sequence[float]) -> HeatPanel:
    return HeatPanel(
        title=key,
        key=key,
        x=category_axis("tokens", [plain(length) for length in lengths]),
        y=category_axis("task", tasks),
        columns=tuple(f"{plain(length)} tokens" for length in lengths),
        rows=tuple(tasks),
        values=tuple(tuple(line) for line in values),
        texts=tuple(tuple("" if value is None else f"{100 * value:.0f}" for value in line) for line in values),
        colour=COLOURS,
    )

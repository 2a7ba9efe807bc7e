"""Loss by position in the context, with a panel for each length."""

from collections.abc import Sequence

from hf_posswap.reporting.figures import (
    Axis,
    Figure,
    LinePanel,
    Table,
    drawable,
    draws,
    number,
    plain,
)
from hf_posswap.reporting.length_figure import Lines, lines_of, train_length_guide
from hf_posswap.reporting.lines import SEVERAL_SEEDS, any_several_seeds, gap_sentences, line_series, marked_if_equal
from hf_posswap.reporting.naming import model_name, slug, staged, variant
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import POSITIONS, Row
from hf_posswap.results.points import Point, by_key

MOST_TICKS = 9


@draws(POSITIONS.family)
def position_figures(group: Group) -> list[Figure]:
    """Return a figure for each measured stage, each with the stock model and its control."""
    return [_figure(group, stage) for stage in group.stages() or [""]]


def _figure(group: Group, stage: str) -> Figure:
    rows = group.of_stage(stage) if stage else list(group.rows)
    lengths = sorted({row["length"] for row in rows})
    lines = {length: _lines([row for row in rows if row["length"] == length]) for length in lengths}
    caption = (
        "Mean loss of the tokens at each place of the text, in nats; lower is better. Places are grouped, and a point "
        "stands in the middle of its group. A line that rises beyond the train length shows from where on the "
        "positions hurt."
    )
    if any_several_seeds(line for own in lines.values() for line in own.values()):
        caption += f" {SEVERAL_SEEDS}"
    return Figure(
        name=slug("position", model_name(group), stage),
        title=staged(f"Loss of {model_name(group)} by position", stage),
        heading="Loss by position",
        variant=variant(group, stage),
        panels=drawable([_panel(length, own, rows, group.train_length) for length, own in lines.items()]),
        caption=caption,
        table=_table(rows),
        provenance=provenance_of(group),
        gaps=tuple(_gaps(lines)),
    )


def _lines(rows: Sequence[Row]) -> Lines:
    # Positions start at 0, which a logarithmic axis cannot show.
    middled = [row | {"middle": max(1.0, (row["position_from"] + row["position_to"]) / 2)} for row in rows]
    return lines_of(middled, "loss", x="middle")


def _panel(length: float, lines: Lines, rows: Sequence[Row], train_length: int | None) -> LinePanel:
    series = marked_if_equal([line_series(key, line, _hover) for key, line in lines.items()])
    places = sorted({point.x for line in lines.values() for point in line})
    powers = [2.0**n for n in range(20) if places[0] <= 2.0**n <= places[-1]]
    step = max(1, -(-len(powers) // MOST_TICKS))
    ticks = tuple(powers[::-1][::step][::-1])
    axis = Axis("position in the text", "log", ticks, tuple(plain(tick) for tick in ticks))
    inside = train_length is not None and train_length < length
    guides = train_length_guide(train_length if inside else None)
    return LinePanel(f"Texts of {plain(length)} tokens", axis, Axis("loss, nats a token"), series, guides)


def _hover(point: Point) -> str:
    return f"loss {number(point.y)} nats"


def _gaps(lines: dict[float, Lines]) -> list[str]:
    """Return the gaps; a scheme without any value at a length is one gap, not one for each position."""
    found: dict[str, list[Point]] = {}
    for length, own in lines.items():
        for key, line in own.items():
            missing = [point for point in line if point.y is None]
            if missing:
                found.setdefault(key, []).append(Point(length, None, None, None, 0, missing[0].note))
    return gap_sentences(found.items())


def _table(rows: Sequence[Row]) -> Table:
    places = sorted({(row["position_from"], row["position_to"]) for row in rows})
    cells: dict[tuple[float, str], dict[tuple[float, float], list[float]]] = {}
    for length in sorted({row["length"] for row in rows}):
        for key, line in _losses_by_place([row for row in rows if row["length"] == length]).items():
            cells[length, key] = line
    body = tuple(
        (plain(length), key, *(_mean(line.get(place)) for place in places)) for (length, key), line in cells.items()
    )
    return Table(("length", "scheme", *(f"{plain(low)}–{plain(high)}" for low, high in places)), body)


def _losses_by_place(rows: Sequence[Row]) -> dict[str, dict[tuple[float, float], list[float]]]:
    """Return the losses of each scheme at each group of positions, one for each seed."""
    found: dict[str, dict[tuple[float, float], list[float]]] = {}
    for key, own in by_key(rows).items():
        for row in own:
            losses = found.setdefault(key, {}).setdefault((row["position_from"], row["position_to"]), [])
            losses += [] if row["loss"] is None else [row["loss"]]
    return found


def _mean(values: list[float] | None) -> str:
    if values is None:
        return ""
    return number(sum(values) / len(values) if values else None)

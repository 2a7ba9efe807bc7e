"""The course of a search: the loss of each candidate round by round, where it was dropped, and the winner."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hf_posswap.reporting.figures import (
    Figure,
    Guide,
    LinePanel,
    Series,
    Table,
    category_axis,
    common_axis,
    draws,
    log_axis,
    number,
    plain,
)
from hf_posswap.reporting.images import draw
from hf_posswap.reporting.lines import one_line
from hf_posswap.reporting.naming import model_name, slug, told_apart
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.reporting.quantities import Quantity, quantity_of
from hf_posswap.results.groups import Group, as_group
from hf_posswap.results.kinds import SEARCH, STOCK, Row
from hf_posswap.results.points import Point, points
from hf_posswap.results.reading import ResultFile


def draw_search(result: ResultFile, path: Path) -> None:
    """Draw a search into an image file; the suffix decides the format (PNG, SVG, PDF)."""
    draw(search_figures(as_group(result))[0], path)


@draws(SEARCH.family)
def search_figures(group: Group) -> list[Figure]:
    """Return a list with the figure of a search: the target length, the train length, and the last rounds enlarged."""
    rows = [row for row in group.rows if row["round"] is not None]
    lengths = sorted({row["length"] for row in rows}, reverse=True)
    quantity = quantity_of(rows)
    winner = group.files[0].facts.get("winner")
    panels = [
        *common_axis([_panel(group, rows, length, winner) for length in lengths]),
        *_enlarged(group, rows, winner),
    ]
    enlarged = "; the last rounds are enlarged without them" if len(panels) > len(lengths) else ""
    marked = f" The wide pale line is the winner, {winner}." if winner else ""
    objective = group.files[0].facts.get("objective") or ""
    return [
        Figure(
            name=slug("search", model_name(group)),
            title=f"Search for the best scheme of {model_name(group)} at {plain(lengths[0])} tokens",
            heading="Search for the best scheme",
            variant=told_apart(group),
            panels=tuple(panels),
            caption=(
                f"{quantity.subject} of the candidates after each round, at the target length and at the train "
                "length, over the healing tokens of each candidate so far. × marks where a candidate was dropped."
                f"{marked} Bands are 95% bootstrap intervals over windows{enlarged}. "
                f"{objective}"
            ).strip(),
            table=_table(rows, lengths, quantity),
            provenance=provenance_of(group),
            gaps=_gaps(rows),
        )
    ]


def _panel(group: Group, rows: Sequence[Row], length: float, winner: str | None) -> LinePanel:
    """Return the panel of one length: the candidates from round to round."""
    quantity, tokens = quantity_of(rows), _tokens(rows)
    lines = {name: own for name, own in _lines(rows, length).items() if name != STOCK}
    series = [_series(name, line, tokens, quantity, dropped=name != winner) for name, line in lines.items()]
    if winner in lines:
        best = _series(winner, lines[winner], tokens, quantity, dropped=False)
        series.append(replace(best, label="the winner", background=True))
    what = "Train length" if length == group.train_length else "Target length"
    x = category_axis("healing tokens of each candidate", [number(tokens[place]) for place in sorted(tokens)])
    return LinePanel(f"{what}, {plain(length)} tokens", x, quantity.axis, tuple(series), _stock_guide(rows, length))


def _enlarged(group: Group, rows: Sequence[Row], winner: str | None) -> list[LinePanel]:
    """Return a panel of the last two rounds at the target length, without intervals; none if there is one round."""
    last = max(row["round"] for row in rows)
    if last < 2:
        return []
    late = [row for row in rows if row["round"] >= last - 1 and row["scheme"] != STOCK]
    panel = _panel(group, late, max(row["length"] for row in rows), winner)
    series = tuple(replace(one, low=(), high=()) for one in panel.series)
    panel = replace(panel, title=f"{panel.title}, the last rounds", series=series)
    return [replace(panel, y=log_axis(f"{panel.y.title}, enlarged", panel.extent()))]


def _stock_guide(rows: Sequence[Row], length: float) -> tuple[Guide, ...]:
    """Return a guide at the stock model's value: at the panel's length, or at the longest length that it reads."""
    known = {row["length"]: row["loss"] for row in rows if row["scheme"] == STOCK and row["loss"] is not None}
    if not known:
        return ()
    read = length if length in known else max(known)
    value = quantity_of(rows).shown(known[read])
    return () if value is None else (Guide("y", value, f"stock at {plain(read)}"),)


def _lines(rows: Sequence[Row], length: float) -> dict[str, list[Point]]:
    """Return the losses of the stock model and of each candidate at one length, by round."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["length"] == length:
            found.setdefault(row["scheme"], []).append(row)
    return {name: points(own, "loss", "loss_low", "loss_high", x="round") for name, own in found.items()}


def _tokens(rows: Sequence[Row]) -> dict[float, float]:
    """Return for each round the healing tokens of a candidate so far."""
    return {row["round"]: row["healing_tokens"] or 0 for row in rows}


def _series(name: str, line: Sequence[Point], tokens: Mapping[float, float], how: Quantity, dropped: bool) -> Series:
    """Return a candidate's line; the end of one that was dropped is marked."""
    known = {point.x: point for point in line}
    drawn = [known.get(place, Point(place, None)) for place in sorted(tokens)]
    ended = max((point.x for point in line if point.y is not None), default=None)
    return Series(
        key=name,
        label=name,
        x=tuple(float(place) for place in range(len(drawn))),  # on an axis of categories
        y=tuple(how.shown(point.y) for point in drawn),
        low=tuple(how.shown(point.low) for point in drawn),
        high=tuple(how.shown(point.high) for point in drawn),
        hover=tuple(how.hover(point) for point in drawn),
        end=f"dropped after round {plain(ended)}" if dropped and ended is not None else "",
    )


def _table(rows: Sequence[Row], lengths: Sequence[float], quantity: Quantity) -> Table:
    """Return the values of each candidate by round."""
    by_length = [_lines(rows, length) for length in lengths]
    body = [
        (
            name,
            plain(line[place].x),
            *(quantity.interval(of_length[name][place]) for of_length in by_length),
            *(number(of_length[name][place].y) for of_length in by_length),
        )
        for name, line in by_length[0].items()
        for place in range(len(line))
    ]
    shown = [f"{quantity.unit} at {plain(length)}" for length in lengths]
    losses = [f"loss at {plain(length)}, nats" for length in lengths]
    return Table(("scheme", "round", *shown, *losses), tuple(body))


def _gaps(rows: Sequence[Row]) -> tuple[str, ...]:
    found = (
        f"{row['scheme']}: nothing at length {plain(row['length'])} ({_note(row)})." for row in rows if row["note"]
    )
    return tuple(dict.fromkeys(found))


def _note(row: Row) -> str:
    return one_line(row["note"])

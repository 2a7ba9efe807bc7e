"""The bias of each scheme by head and distance, before and after calibration.

Schemes whose heads all have the same values, such as RoPE's rotation, share one panel of lines. Every other scheme has
a figure of its own with a heat map for each stage and a row for each head.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hf_posswap.reporting.colours import DIVERGING
from hf_posswap.reporting.figures import (
    Axis,
    ColourAxis,
    Figure,
    HeatPanel,
    LinePanel,
    Series,
    Table,
    draws,
    number,
    plain,
)
from hf_posswap.reporting.lines import marked_if_equal, one_line
from hf_posswap.reporting.naming import model_name, slug, told_apart
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import BIASES, Row
from hf_posswap.results.points import by_key, points

WIDEST = 10.0
"""The colour scale ends at ±10 nats: a larger bias makes no visible difference to attention."""
CLOSEST = 24
"""Labels below a heat map are at least 1 / this number of its width apart."""
BIAS = "bias"
QUANTITIES = {
    BIAS: "bias, nats",
    "cosine-sum": "mean cosine, 1 at distance 0",
}


@draws(BIASES.family)
def bias_figures(group: Group) -> list[Figure]:
    """Return the figure of lines for schemes whose heads agree, and a figure of heat maps for each other scheme."""
    silent = silences(group)
    lines: list[Row] = []
    maps: dict[str, list[Row]] = {}
    for (key, stage), rows in _said(group).items():
        if (key, stage) in silent:
            continue
        if all(row.get("head") is None for row in rows):
            lines += rows
        else:
            maps.setdefault(key, []).extend(rows)
    figures = [_line_figure(group, lines)] if lines else []
    figures += [_heat_figure(group, key, rows) for key, rows in maps.items()]
    return _with_gaps(figures, silent)


def silences(group: Group) -> dict[tuple[str, str], str]:
    """Return the schemes and stages without anything to draw, each with the reason."""
    return {place: reason for place, rows in _said(group).items() if (reason := _silence(rows))}


def _said(group: Group) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each scheme in each stage."""
    return {
        (key, stage): [row for row in rows if row["stage"] == stage]
        for key, rows in by_key(group.rows).items()
        for stage in dict.fromkeys(row["stage"] for row in rows)
    }


def _with_gaps(figures: Sequence[Figure], silent: Mapping[tuple[str, str], str]) -> list[Figure]:
    """Add the reasons of `silences` as gaps: to the scheme's own figure, or to the first one if it has none."""
    result = []
    for place, figure in enumerate(figures):
        own = [
            f"{key}, {stage}: {reason}."
            for (key, stage), reason in silent.items()
            if key in figure.schemes() or (place == 0 and all(key not in other.schemes() for other in figures))
        ]
        result.append(replace(figure, gaps=tuple(own)))
    return result


def _silence(rows: Sequence[Row]) -> str:
    """Return why a scheme in one stage has nothing to draw; empty if it has something."""
    placed = [row for row in rows if row["distance"] is not None]
    if not placed:
        return one_line(next((row["note"] for row in rows if row["note"]), "nothing by distance"))
    if all(row["value"] == 0 for row in placed):
        return "zero at every distance, so no position until it is calibrated or trained"
    return ""


def _quantity(row: Row) -> str:
    return str(row.get("quantity") or BIAS)


def _line_figure(group: Group, rows: Sequence[Row]) -> Figure:
    panels = []
    for quantity in dict.fromkeys(_quantity(row) for row in rows):
        own = [row for row in rows if _quantity(row) == quantity]
        series = marked_if_equal([_series(key, mine) for key, mine in by_key(own).items()])
        distances = sorted({row["distance"] for row in own})
        ticks = tuple(tick for tick in _distance_ticks(distances) if tick > 0)
        axis = Axis("distance Δ", "log", ticks, tuple(plain(tick) for tick in ticks))
        panels.append(LinePanel(_quantity_title(quantity), axis, Axis(QUANTITIES.get(quantity, quantity)), series))
    rotary = {_quantity(row) for row in rows} == {"cosine-sum"}
    heading = f"{'Rotary angles' if rotary else 'Schemes that treat all heads alike'} by distance"
    return Figure(
        name=slug("distances", model_name(group)),
        title=f"{heading}, in {model_name(group)}",
        heading=heading,
        variant=told_apart(group),
        panels=tuple(panels),
        caption="What a rotation of queries and keys leaves of a vector's product with itself at distance Δ, the mean "
        "over all directions: 1 is all of it.",
        table=_line_table(rows),
        provenance=provenance_of(group),
    )


def _quantity_title(quantity: str) -> str:
    return "Rotary angles: mean cosine by distance" if quantity == "cosine-sum" else "Bias by distance"


def _series(key: str, rows: Sequence[Row]) -> Series:
    last = rows[-1]["stage"]
    line = points([row for row in rows if row["stage"] == last], "value", x="distance")
    line = [point for point in line if point.x > 0]  # a logarithmic axis has no 0
    return Series(
        key=key,
        label=key,
        x=tuple(point.x for point in line),
        y=tuple(point.y for point in line),
        hover=tuple(f"Δ = {plain(point.x)}: {number(point.y)}" for point in line),
    )


def _heat_figure(group: Group, key: str, rows: Sequence[Row]) -> Figure:
    quantity = _quantity(rows[0])
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    reach = max((abs(row["value"]) for row in rows if row["value"] is not None), default=0.0)
    top = min(WIDEST, _rounded_up(reach)) or 1.0
    colour = ColourAxis(QUANTITIES.get(quantity, quantity), DIVERGING, -top, top)
    panels = [_heat_panel(key, stage, [row for row in rows if row["stage"] == stage], colour) for stage in stages]
    return Figure(
        name=slug("bias", model_name(group), key),
        title=f"The bias of {key} by head and distance, in {model_name(group)}",
        heading="Bias by head and distance",
        variant=", ".join(filter(None, (key, told_apart(group)))),
        panels=tuple(panels),
        caption="What is added to the scaled score of a key Δ tokens before its query; one row a head. Blue takes "
        f"attention away, red gives it. Colours end at ±{plain(top)} nats." + _alike(rows, stages) + _notes(rows),
        table=_heat_table(rows),
        provenance=provenance_of(group),
    )


def _alike(rows: Sequence[Row], stages: Sequence[str]) -> str:
    """Return a sentence with the stages in which a row stands for a head of every layer."""
    alike = [stage for stage in stages if all(row.get("layer") is None for row in rows if row["stage"] == stage)]
    where = "" if alike == list(stages) else f" where it is {' or '.join(alike)}"
    return f" All layers say the same{where}, so each head stands once." if alike else ""


def _notes(rows: Sequence[Row]) -> str:
    """Return the notes of the rows, such as the query for which a bias was computed."""
    notes = dict.fromkeys(row["note"] for row in rows if row["note"] and row["value"] is not None)
    return "".join(f" Taken {one_line(note)}." for note in notes)


def _rounded_up(value: float) -> float:
    """Return the next number of 1, 2, 5, 10, …, so that the colour scale ends at round numbers."""
    if value <= 0:
        return 0.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(m * size for m in (1, 2, 5, 10) if m * size >= value * (1 - 1e-9))


def _heat_panel(key: str, stage: str, rows: Sequence[Row], colour: ColourAxis) -> HeatPanel:
    distances = sorted({row["distance"] for row in rows})
    heads = sorted({_head(row) for row in rows})
    cells = {(_head(row), row["distance"]): row["value"] for row in rows}
    columns = {distance: index for index, distance in enumerate(distances)}
    ticks = _apart([distance for distance in _distance_ticks(distances) if distance in columns], columns)
    firsts = [index for index, head in enumerate(heads) if index == 0 or head[0] != heads[index - 1][0]]
    several_layers = len(firsts) > 1
    names = [f"layer {layer}" if several_layers else f"head {head}" for layer, head in heads]
    step = max(1, -(-len(firsts) // 16)) if several_layers else 1
    labelled = firsts[::step] if several_layers else list(range(len(heads)))
    values = tuple(tuple(cells.get((head, distance)) for distance in distances) for head in heads)
    return HeatPanel(
        title=stage,
        key=key,
        x=Axis("distance Δ", "category", tuple(float(columns[tick]) for tick in ticks), tuple(plain(t) for t in ticks)),
        y=Axis("", "category", tuple(map(float, labelled)), tuple(names[index] for index in labelled)),
        columns=tuple(f"Δ = {plain(distance)}" for distance in distances),
        rows=tuple(_head_name(head) for head in heads),
        values=values,
        colour=colour,
        rules=tuple(firsts[1:]),
    )


def _head(row: Row) -> tuple[int, int]:
    layer = row.get("layer")
    head = row.get("head")
    return (-1 if layer is None else int(layer)), (0 if head is None else int(head))


def _head_name(head: tuple[int, int]) -> str:
    return f"{'every layer' if head[0] < 0 else f'layer {head[0]}'}, head {head[1]}"


def _distance_ticks(distances: Iterable[float]) -> list[float]:
    """Return 0 and the powers of two on both sides, up to the largest distances."""
    known = sorted(distances)
    powers = [2.0**n for n in range(20)]
    ticks = [-p for p in reversed(powers) if known[0] <= -p] + [0.0] + [p for p in powers if p <= known[-1]]
    inside = [tick for tick in ticks if known[0] <= tick <= known[-1]]
    step = max(1, -(-len(inside) // 12))
    middle = inside.index(0.0) if 0.0 in inside else 0
    return inside[middle % step :: step]


def _apart(ticks: Sequence[float], columns: Mapping[float, int]) -> list[float]:
    """Remove ticks that are too close to the previous one to be readable; 0 is always kept."""
    least = len(columns) / CLOSEST
    kept: list[float] = []
    for tick in sorted(ticks, key=abs):
        if all(abs(columns[tick] - columns[other]) >= least for other in kept):
            kept.append(tick)
    return sorted(kept)


def _line_table(rows: Sequence[Row]) -> Table:
    distances = _distance_ticks({row["distance"] for row in rows})
    body = []
    for key, own in by_key(rows).items():
        for stage in dict.fromkeys(row["stage"] for row in own):
            cells = {row["distance"]: number(row["value"]) for row in own if row["stage"] == stage}
            body.append((key, stage, _quantity(own[0]), *(cells.get(d, "") for d in distances)))
    return Table(("scheme", "stage", "quantity", *(f"Δ = {plain(d)}" for d in distances)), tuple(body))


def _heat_table(rows: Sequence[Row]) -> Table:
    distances = _distance_ticks({row["distance"] for row in rows})
    body = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        cells = {(_head(row), row["distance"]): number(row["value"]) for row in own}
        for head in sorted({_head(row) for row in own}):
            layer = "all" if head[0] < 0 else str(head[0])
            body.append((stage, layer, str(head[1]), *(cells.get((head, d), "") for d in distances)))
    return Table(("stage", "layer", "head", *(f"Δ = {plain(d)}" for d in distances)), tuple(body))

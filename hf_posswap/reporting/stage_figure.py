"""Schemes by stage: swapped, calibrated and healed, with the stock model and its control."""

from collections.abc import Sequence

from hf_posswap.reporting.figures import (
    Figure,
    Guide,
    LinePanel,
    Series,
    Table,
    category_axis,
    common_axis,
    number,
    plain,
)
from hf_posswap.reporting.lines import in_order, marked_if_equal
from hf_posswap.reporting.naming import model_name, protocol_title, slug, told_apart
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.reporting.quantities import Quantity, quantity_of
from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import CONTROL, STOCK, Row
from hf_posswap.results.points import Point, by_key, points


def stage_figures(group: Group) -> list[Figure]:
    """Return a list with the figure; empty if fewer than two stages were measured."""
    if len(group.stages()) < 2:
        return []
    quantity = quantity_of(group.rows)
    protocols = dict.fromkeys(row["protocol"] for row in group.rows)
    shown = [(protocol, length) for protocol in protocols for length in shown_lengths(group, protocol)]
    return [
        Figure(
            name=slug("stages", model_name(group)),
            title=f"What calibration and healing give back to {model_name(group)}",
            heading="What calibration and healing give back",
            variant=told_apart(group),
            panels=_panels(group, shown),
            caption=_caption(group, quantity),
            table=_table(group, shown),
            provenance=provenance_of(group),
        )
    ]


def _caption(group: Group, quantity: Quantity) -> str:
    """Return the caption, which mentions the stock model and its control only if the group has them."""
    drawn = by_key(group.rows)
    lines = [
        told
        for key, told in (
            (STOCK, " The wide pale line is the stock model."),
            (CONTROL, " The dashed line is the control: the stock model, trained again on the same tokens."),
        )
        if key in drawn
    ]
    return (
        f"{quantity.subject} of each scheme {_listed(group.stages())}, at the train length and at the longest length "
        f"measured.{''.join(lines)}"
    )


def _listed(stages: Sequence[str]) -> str:
    """Return stages as a list in words."""
    words = {"swapped": "as it was swapped in", "calibrated": "after calibration", "healed": "after healing"}
    told = [words.get(stage, stage) for stage in stages]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def _panels(group: Group, shown: Sequence[tuple[str, float]]) -> tuple[LinePanel, ...]:
    panels = [stage_panel(group, protocol, length) for protocol, length in shown]
    return common_axis(panels) if quantity_of(group.rows).scale == "log" else tuple(panels)


def shown_lengths(group: Group, protocol: str) -> list[float]:
    """Return the train length, or the longest measured length below it, and the longest length with a value."""
    known = sorted({row["length"] for row in group.rows if row["protocol"] == protocol and row["loss"] is not None})
    if not known:
        return []
    limit = group.train_length or _longest_stock(group, protocol) or known[-1]
    within = [length for length in known if length <= limit] or known[:1]
    return list(dict.fromkeys((within[-1], known[-1])))


def _longest_stock(group: Group, protocol: str) -> float | None:
    known = [row["length"] for row in _rows(group, protocol) if row["stage"] == STOCK and row["loss"] is not None]
    return max(known, default=None)


def _rows(group: Group, protocol: str) -> list[Row]:
    return [row for row in group.rows if row["protocol"] == protocol]


def _point(rows: Sequence[Row]) -> Point | None:
    found = points(rows, "loss", "loss_low", "loss_high")
    return found[0] if found else None


def stage_panel(group: Group, protocol: str, length: float) -> LinePanel:
    """Return the panel of one protocol and length: the stages from left to right, a line for each scheme."""
    stages, quantity = group.stages(), quantity_of(group.rows)
    rows = [row for row in _rows(group, protocol) if row["length"] == length]
    places = tuple(float(index) for index in range(len(stages)))
    series = []
    for key, own in by_key(rows).items():
        unswapped = key in (STOCK, CONTROL)
        found = [_point([row for row in own if unswapped or row["stage"] == stage]) for stage in stages]
        series.append(_series(key, places, found, quantity))
    title = f"{protocol_title(protocol)}, {plain(length)} tokens"
    x = category_axis("", stages)
    return LinePanel(title, x, quantity.axis, marked_if_equal(series), _stock_guide(group, protocol, length))


def _series(key: str, places: tuple[float, ...], found: Sequence[Point | None], quantity: Quantity) -> Series:
    y = tuple(quantity.shown(point.y) if point else None for point in found)
    ends = [
        in_order(quantity.shown(point.low), quantity.shown(point.high)) if point else (None, None) for point in found
    ]
    return Series(
        key=key,
        label=key,
        x=places,
        y=y,
        low=tuple(low for low, _ in ends),
        high=tuple(high for _, high in ends),
        hover=tuple(f"{quantity.unit} {number(value)}" for value in y),
        background=key == STOCK,
    )


def _stock_guide(group: Group, protocol: str, length: float) -> tuple[Guide, ...]:
    """Return a guide at the stock model's value for its longest length, if that is below the panel's length."""
    longest = _longest_stock(group, protocol)
    if longest is None or longest >= length:
        return ()
    rows = [row for row in _rows(group, protocol) if row["stage"] == STOCK and row["length"] == longest]
    value = quantity_of(group.rows).shown(points(rows, "loss")[0].y)
    return () if value is None else (Guide("y", value, f"stock at {plain(longest)}"),)


def _table(group: Group, shown: Sequence[tuple[str, float]]) -> Table:
    quantity = quantity_of(group.rows)
    body = []
    for protocol, length in shown:
        rows = [row for row in _rows(group, protocol) if row["length"] == length]
        for key, own in by_key(rows).items():
            for stage in dict.fromkeys(row["stage"] for row in own):
                point = _point([row for row in own if row["stage"] == stage])
                assert point is not None
                loss = [number(point.y)] if quantity.loss_unit else []
                body.append((protocol, plain(length), key, stage, quantity.interval(point), *loss))
    loss_column = [f"loss, {quantity.loss_unit}"] if quantity.loss_unit else []
    return Table(("protocol", "length", "scheme", "stage", quantity.unit, *loss_column), tuple(body))

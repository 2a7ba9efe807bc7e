"""Passkey retrieval: the share found by depth of the passkey and length of the text, with a panel for each scheme.

If the log-probability of the right keys was measured, a second figure shows it by length, with a line for each scheme.
"""

from collections.abc import Sequence
from dataclasses import replace

from hf_posswap.reporting.colours import SEQUENTIAL
from hf_posswap.reporting.figures import (
    Axis,
    ColourAxis,
    Figure,
    HeatPanel,
    LinePanel,
    Table,
    Value,
    category_axis,
    draws,
    numbered_axis,
    plain,
)
from hf_posswap.reporting.lines import gap_sentences, interval, line_series, marked_if_equal
from hf_posswap.reporting.naming import model_name, slug, staged, variant
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import PASSKEY, Row
from hf_posswap.results.points import Point, by_key, points

LOG_PROBABILITY = "log_probability"
COLOURS = ColourAxis("share found", SEQUENTIAL, 0.0, 1.0)


@draws(PASSKEY.family)
def passkey_figures(group: Group) -> list[Figure]:
    """Return the figures of each measured stage, each with the stock model and its control."""
    made = [make(group, stage) for stage in group.stages() or [""] for make in (_figure, _log_probability)]
    return [figure for figure in made if figure is not None]


def _figure(group: Group, stage: str) -> Figure:
    rows = group.of_stage(stage) if stage else list(group.rows)
    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    return Figure(
        name=slug("passkey", model_name(group), stage),
        title=staged(f"Passkey retrieval of {model_name(group)}", stage),
        heading="Passkey retrieval",
        variant=variant(group, stage),
        panels=tuple(_panel(key, own, lengths, depths) for key, own in by_key(rows).items()),
        caption=f"The share of passkeys found: a number hidden at a depth of the text (0% is its start, far from the "
        f"question; 100% its end) and asked for at the end.{_chance(rows)}{_trials(rows)} Empty cells were not "
        "measured.",
        table=_table(rows, lengths, depths),
        provenance=provenance_of(group),
        gaps=tuple(_gaps(rows)),
    )


def _log_probability(group: Group, stage: str) -> Figure | None:
    """Return the figure of the right keys' log-probability; None if no row has it, as in old files."""
    rows = group.of_stage(stage) if stage else list(group.rows)
    known = [row for row in rows if row.get(LOG_PROBABILITY) is not None]
    if not known:
        return None
    lines = {key: points(own, LOG_PROBABILITY) for key, own in by_key(known).items()}
    lengths = sorted({row["length"] for row in known})
    # The range over depths is in the hover text: as bands, those of several schemes would cover each other.
    series = marked_if_equal([replace(line_series(key, line, _hover), low=(), high=()) for key, line in lines.items()])
    axis = Axis("log-probability of a token of the key, nats")
    panel = LinePanel("All depths", numbered_axis("tokens read at once", lengths), axis, series)
    cells = {key: {point.x: _hover(point) for point in line} for key, line in lines.items()}
    return Figure(
        name=slug("passkey-probability", model_name(group), stage),
        title=staged(f"Log-probability of pass keys in {model_name(group)}", stage),
        heading="Log-probability of pass keys",
        variant=variant(group, stage),
        panels=(panel,),
        caption="The mean log-probability of a token of the right key, given the ones before it; higher is better, and "
        "0 is certain. It tells schemes apart that find every key, or none. Lines are means over depths and seeds; the "
        "table has the lowest and the highest too.",
        table=Table(
            ("scheme", *(plain(length) for length in lengths)),
            tuple((key, *(own.get(length, "") for length in lengths)) for key, own in cells.items()),
        ),
        provenance=provenance_of(group),
    )


def _hover(point: Point) -> str:
    return interval(point.y, point.low, point.high)


def _chance(rows: Sequence[Row]) -> str:
    levels = sorted({row["chance"] for row in rows if row.get("chance") is not None})
    return f" Chance is {' or '.join(f'{100 * level:.3g}%' for level in levels)}." if levels else ""


def _trials(rows: Sequence[Row]) -> str:
    counts = sorted({row["trials"] for row in rows if row.get("trials")})
    if not counts:
        return ""
    return f" Each cell stands for {counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'} trials a seed."


def _share(rows: Sequence[Row], length: float, depth: float) -> Value:
    """Return the share found over all seeds, weighted by trials."""
    cells = [row for row in rows if (row["length"], row["depth"]) == (length, depth) and row["correct"] is not None]
    weights = [row.get("trials") or 1 for row in cells]
    total = sum(weights)
    return sum(row["correct"] * weight for row, weight in zip(cells, weights, strict=True)) / total if total else None


def _panel(key: str, rows: Sequence[Row], lengths: Sequence[float], depths: Sequence[float]) -> HeatPanel:
    values = tuple(tuple(_share(rows, length, depth) for length in lengths) for depth in depths)
    return HeatPanel(
        title=key,
        key=key,
        x=category_axis("tokens", [plain(length) for length in lengths]),
        y=category_axis("depth", [f"{depth:.0%}" for depth in depths]),
        columns=tuple(f"{plain(length)} tokens" for length in lengths),
        rows=tuple(f"depth {depth:.0%}" for depth in depths),
        values=values,
        texts=tuple(tuple("" if share is None else f"{100 * share:.0f}" for share in line) for line in values),
        colour=COLOURS,
    )


def _gaps(rows: Sequence[Row]) -> list[str]:
    """Return the gaps; a length that a scheme cannot read is one gap, not one for each depth."""
    return gap_sentences(
        (key, [point for point in points(own, "correct") if point.y is None]) for key, own in by_key(rows).items()
    )


def _table(rows: Sequence[Row], lengths: Sequence[float], depths: Sequence[float]) -> Table:
    body = []
    for key, own in by_key(rows).items():
        for depth in depths:
            shares = [_share(own, length, depth) for length in lengths]
            cells = ("—" if share is None else f"{share:.0%}" for share in shares)
            body.append((key, f"{depth:.0%}", *cells))
    return Table(("scheme", "depth", *(plain(length) for length in lengths)), tuple(body))

"""A comparison as tables in the terminal."""

from collections.abc import Mapping
from typing import Any

import typer

from hf_posswap.commands.console import print_table
from hf_posswap.experiments.cells import Cell
from hf_posswap.reporting.quantities import COSINE, Quantity, quantity_of
from hf_posswap.results.kinds import PROTOCOL_WORDS
from hf_posswap.results.points import Point, curves_of


def print_result(result: Mapping[str, Any]) -> None:
    """Print one table for each protocol, then the reasons of gaps and of absent points."""
    seeds = result["settings"].get("seeds", 1)
    spread = f", mean of {seeds} seeds ± half their range" if seeds > 1 else ""
    for protocol, words in PROTOCOL_WORDS.items():
        curves = curves_of(result["rows"], protocol)
        if not curves:
            continue
        quantity = quantity_of([{"protocol": protocol}])
        lengths = [str(length) for length in sorted({point.x for curve in curves for point in curve.points})]
        body = [(curve.scheme, curve.stage, *(_cell(point, quantity) for point in curve.points)) for curve in curves]
        heading = f"{words.heading} ({result['model']}, train length {result['train_length']}{spread})"
        print_table(heading, ("scheme", "stage", *lengths), body, lengths)
    gaps = {f"{Cell(row['scheme'], row['stage'], row['seed'])}: {row['note']}" for row in result["rows"] if row["note"]}
    absent = [
        f"{cell['scheme']} has no {cell['stage']} point: {cell['reason']}"
        for cell in result["cells"]
        if cell["status"] == "absent"
    ]
    for message in dict.fromkeys([*sorted(gaps), *absent]):
        typer.echo(f"— {message}")


def _cell(point: Point, quantity: Quantity) -> str:
    """Return the mean over the seeds, in the quantity that is shown, with half the range of several seeds."""
    if point.y is None:
        return "—"
    value = quantity.shown(point.y)
    if value is None:  # too large for a float
        return "inf"
    digits = 4 if quantity == COSINE else 2
    text = f"{value:.{digits}f}" if value < 1000 else f"{value:.4g}"
    low, high = quantity.shown(point.low), quantity.shown(point.high)
    return text if low is None or high is None else f"{text} ±{abs(high - low) / 2:.2g}"

"""A comparison as tables in the terminal."""

from collections.abc import Mapping
from typing import Any

import typer

from hf_posswap.commands.console import print_table
from hf_posswap.comparison import Cell
from hf_posswap.reporting.comparison_curves import Curve, curves_of

PROTOCOL_TITLES = {
    "windows": "Perplexity, non-overlapping windows",
    "same-targets": "Perplexity, same target tokens with ever longer context",
    "masked": "Masked-token perplexity, same masked tokens at every length",
    "agreement": "Mean cosine of text embeddings to the stock model's",
}


def print_result(result: Mapping[str, Any]) -> None:
    """Print one table for each protocol, then the reasons of the gaps and of points that are not there."""
    seeds = result["settings"].get("seeds", 1)
    spread = f", mean of {seeds} seeds ± half their range" if seeds > 1 else ""
    for protocol, title in PROTOCOL_TITLES.items():
        curves = curves_of(result["rows"], protocol)
        if not curves:
            continue
        digits = 4 if protocol == "agreement" else 2
        lengths = [str(length) for length in sorted({point.length for curve in curves for point in curve.points})]
        body = [(curve.scheme, curve.stage, *_cells(curve, digits)) for curve in curves]
        heading = f"{title} ({result['model']}, train length {result['train_length']}{spread})"
        print_table(heading, ("scheme", "stage", *lengths), body, lengths)
    gaps = {f"{Cell(row['scheme'], row['stage'], row['seed'])}: {row['note']}" for row in result["rows"] if row["note"]}
    absent = [
        f"{cell['scheme']} has no {cell['stage']} point: {cell['reason']}"
        for cell in result["cells"]
        if cell["status"] == "absent"
    ]
    for message in dict.fromkeys([*sorted(gaps), *absent]):
        typer.echo(f"— {message}")


def _cells(curve: Curve, digits: int) -> list[str]:
    return [_format(point.value, point.spread, digits) for point in curve.points]


def _format(value: float | None, spread: float | None, digits: int) -> str:
    if value is None:
        return "—"
    number = f"{value:.{digits}f}" if value < 1000 else f"{value:.4g}"
    return number if spread is None else f"{number} ±{spread:.2g}"

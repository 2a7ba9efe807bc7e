"""How far RoPE models read without training: tables from what benchmarks/training_free.py measured."""

import csv
from collections.abc import Mapping
from pathlib import Path

from marked import markdown

from hf_posswap.reporting.figures import Table

REFERENCE = "rope"
Row = Mapping[str, str]


def losses(path: Path) -> str:
    """Return the loss at each length and, after it, the processor time as a ratio to rope's at that length."""
    with path.open(encoding="utf-8") as file:
        found = {(row["scheme"], int(row["length"])): row for row in csv.DictReader(file)}
    lengths = sorted({length for _, length in found})
    rows = []
    for scheme in dict.fromkeys(scheme for scheme, _ in found):
        given = [(found.get((scheme, length)), found[REFERENCE, length]) for length in lengths]
        rows.append((f"`{scheme}`", *(_cell(row, reference) if row else "—" for row, reference in given)))
    return markdown(Table(("scheme", *map(str, lengths)), tuple(rows)))


def _cell(row: Row, reference: Row) -> str:
    return f"{float(row['loss']):.3f}; {float(row['seconds']) / float(reference['seconds']):.1f}"

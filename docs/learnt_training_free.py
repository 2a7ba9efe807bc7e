"""How far RoPE models read without training: tables from what benchmarks/training_free.py measured."""

import csv
from collections.abc import Mapping
from pathlib import Path

from marked import markdown

from hf_posswap.reporting.figures import Table

REFERENCE = "rope"
Row = Mapping[str, str]


def losses(path: Path, passkeys: Path | None = None) -> str:
    """Return the loss at each length, processor time as a ratio to rope's at that length, and pass keys if measured."""
    found = _by_length(path)
    keys = {} if passkeys is None else _by_length(passkeys)
    lengths, far = sorted({length for _, length in found}), sorted({length for _, length in keys})
    rows = []
    for scheme in dict.fromkeys(scheme for scheme, _ in found):
        read = [_loss(found.get((scheme, length)), found[REFERENCE, length]) for length in lengths]
        rows.append((f"`{scheme}`", *read, *(_found(keys.get((scheme, length))) for length in far)))
    columns = ("scheme", *map(str, lengths), *(f"pass keys at {length}" for length in far))
    return markdown(Table(columns, tuple(rows)))


def _by_length(path: Path) -> dict[tuple[str, int], Row]:
    with path.open(encoding="utf-8") as file:
        return {(row["scheme"], int(row["length"])): row for row in csv.DictReader(file)}


def _loss(row: Row | None, reference: Row) -> str:
    return f"{float(row['loss']):.3f}; {float(row['seconds']) / float(reference['seconds']):.1f}" if row else "—"


def _found(row: Row | None) -> str:
    """Return how many keys are written exactly, and the log-probability of a token of the right key."""
    if row is None:
        return "—"
    keys = int(row["keys"]) * len(row["depths"].split())
    return f"{round(float(row['exact']) * keys)} of {keys}; {float(row['log_probability']):.2f}"

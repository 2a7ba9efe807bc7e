"""Print the tables of docs/speed.md from the bench.json files of a folder.

python benchmarks/speed_table.py docs/results/bench-cpu
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

TARGETS = {
    "prefill": dict.fromkeys(("rope", "none", "sinusoidal", "learned"), 1.02)
    | {"alibi": 1.08, "t5": 1.25, "relative_bias": 1.25, "shaw": 2.0, "transformer_xl": 2.0},
    "training": {"alibi": 1.10, "t5": 1.35},
    "decode": {"alibi": 1.05, "t5": 1.10},
}
"""Ratios to the unswapped model that are aimed at on a CPU."""


UNRECORDED = "first"
"""The CPU of files that do not name its instructions."""


def read_rows(folder: Path) -> list[Row]:
    """Return the measured rows of every bench.json below a folder, each with its CPU's instructions as "cpu"."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("bench.json"))]
    return [
        row | {"cpu": record["environment"]["hardware"].get("cpu_capability", UNRECORDED)}
        for record in records
        for row in record["rows"]
        if row["time_ratio"] is not None
    ]


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a Markdown table."""
    names = list(columns)
    print("| " + " | ".join(names) + " |\n" + "| --- " * len(names) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def ratio(row: Row) -> str:
    """Return a ratio with its spread, bold if it misses its target."""
    target = TARGETS.get(row["mode"], {}).get(row["scheme"])
    figure = f"{row['time_ratio']:.2f}"
    if target is not None and row["time_ratio"] > target:
        figure = f"**{figure}**"
    return f"{figure} ({row['time_ratio_low']:.2f}–{row['time_ratio_high']:.2f})"


def print_times(rows: list[Row]) -> None:
    """Print time and memory by model, mode, scheme, dtype and length."""
    cells = [row for row in rows if row["mode"] in TARGETS and row["backend"] == "sdpa"]
    order = {mode: place for place, mode in enumerate(TARGETS)}
    names = ("model", "scheme", "length", "cpu")
    cells.sort(key=lambda row: (order[row["mode"]], *(row[name] for name in names), row["dtype"]))
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in cells:
        groups.setdefault((row["mode"], *(row[name] for name in names)), {})[row["dtype"]] = row
    body = []
    for (mode, model, scheme, length, cpu), by_dtype in groups.items():
        target = TARGETS[mode].get(scheme)
        figures = [ratio(by_dtype[d]) if d in by_dtype else "–" for d in ("float32", "bfloat16")]
        memory = [f"{by_dtype[d]['memory_ratio']:.3f}" if d in by_dtype else "–" for d in ("float32", "bfloat16")]
        aim = f"≤ {target}" if target else "–"
        body.append((mode, model, scheme, str(length), cpu, aim, *figures, *memory))
    dtypes = ("float32", "bfloat16", "memory float32", "memory bfloat16")
    columns = ("mode", "shape", "scheme", "length", "CPU", "target", *dtypes)
    print_table(columns, body)


def print_dense(rows: list[Row]) -> None:
    """Print how many times faster than a dense bias in eager attention a swapped model is."""
    names = ("model", "mode", "scheme", "dtype", "length", "cpu", "backend")
    by_cell = {tuple(row[name] for name in names): row for row in rows}
    body = []
    for (*cell, backend), row in by_cell.items():
        ours = by_cell.get((*cell, "sdpa"))
        if backend == "dense-eager" and ours is not None:
            faster = row["time_ratio"] / ours["time_ratio"]
            body.append((*map(str, cell), f"{row['time_ratio']:.2f}", f"{ours['time_ratio']:.2f}", f"{faster:.1f}×"))
    print_table(("shape", "mode", "scheme", "dtype", "length", "CPU", "dense bias", "here", "faster"), body)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    rows = read_rows(parser.parse_args().folder)
    print_times(rows)
    print_dense(rows)


if __name__ == "__main__":
    main()

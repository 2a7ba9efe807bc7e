"""Measure ways to weigh pairs in calibration: loss above the stock model's, in nats a token, on a book it did not read.

Calibrates on evenly spread windows of Jo's Boys and measures on evenly spread windows of Frankenstein, for each scheme
and each way. Every result is added to a CSV file at once; those already in it are not computed again, so that a run can
be broken off. Prints a Markdown table at the end.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from torch import Tensor

import hf_posswap
from hf_posswap.calibration import FitSettings, mean_loss, text_windows
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.texts.sources import resolve_texts

WAYS = {
    "the mean of the three": FitSettings(),
    "uniform": FitSettings(teacher=0, student=0, uniform=1),
    "teacher": FitSettings(teacher=1, student=0, uniform=0),
    "student": FitSettings(teacher=0, student=1, uniform=0),
    "teacher and student": FitSettings(teacher=0.5, student=0.5, uniform=0),
    "half uniform": FitSettings(teacher=0.25, student=0.25, uniform=0.5),
    "the mean, 5 rounds": FitSettings(rounds=5),
    "the mean, all layers on the stock stream": FitSettings(follow=False),
}
SCHEMES = ("relative_bias", "t5:per_layer=true", "alibi:trainable=true:per_layer=true")
COLUMNS = ("model", "length", "windows", "test_windows", "scheme", "way", "stock", "swapped", "calibrated")


def windows_of(model: str, text: str, length: int, count: int) -> list[Tensor]:
    """Return `count` windows (1, length), evenly spread over a text."""
    windows = text_windows(load_tokenizer(model), resolve_texts(text)[0].read(), length)
    return [windows[place * (len(windows) - 1) // max(1, count - 1)] for place in range(count)]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the results measured so far."""
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def add_row(path: Path, row: dict[str, str]) -> None:
    """Add one result to the file."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def print_table(rows: list[dict[str, str]]) -> None:
    """Print results of one model and length: a row for each way, a column for each scheme."""
    losses = {(row["way"], row["scheme"]): float(row["calibrated"]) - float(row["stock"]) for row in rows}
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    print("| way | " + " | ".join(schemes) + " |\n" + "| --- " * (len(schemes) + 1) + "|")
    for way in WAYS:
        cells = [f"{losses[way, scheme]:.3f}" if (way, scheme) in losses else "" for scheme in schemes]
        if any(cells):
            print(f"| {way} | " + " | ".join(cells) + " |")


@torch.no_grad()
def main() -> None:
    """Measure what the file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:gpt2")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16, help="windows to calibrate on")
    parser.add_argument("--test-windows", type=int, default=16, help="windows to measure on")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--output", type=Path, default=Path("docs/results/calibration-weightings.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    key = {name: str(getattr(arguments, name)) for name in COLUMNS[:4]}
    wanted = [key | {"scheme": scheme, "way": way} for scheme in arguments.schemes for way in arguments.ways]
    known = [{name: row[name] for name in wanted[0]} for row in read_rows(arguments.output)]
    missing = [cell for cell in wanted if cell not in known]
    if missing:
        measure(missing, arguments)
    print_table([row for row in read_rows(arguments.output) if key.items() <= row.items()])


def measure(cells: list[dict[str, str]], arguments: argparse.Namespace) -> None:
    """Measure the cells one after the other, with a line of progress for each."""
    train = windows_of(arguments.model, "demo:book/train", arguments.length, arguments.windows)
    test = windows_of(arguments.model, "demo:book/test", arguments.length, arguments.test_windows)
    model = load_model(arguments.model)
    stock = mean_loss(model, test)
    swapped: dict[str, float | None] = {}
    for done, cell in enumerate(cells, start=1):
        hf_posswap.swap(model, cell["scheme"], replace=True)
        if cell["scheme"] not in swapped:
            swapped[cell["scheme"]] = mean_loss(model, test)
        hf_posswap.calibrate(model, train, settings=WAYS[cell["way"]], measure=False)
        losses = {"stock": stock, "swapped": swapped[cell["scheme"]], "calibrated": mean_loss(model, test)}
        add_row(arguments.output, cell | {name: f"{loss:.4f}" for name, loss in losses.items()})
        above = losses["calibrated"] - stock
        print(f"{done} of {len(cells)}: {cell['scheme']}, {cell['way']}: {above:.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

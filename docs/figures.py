"""Draw the figures of docs/figures.md and docs/speed.md and write their tables: measured here, and the paper's curves.

Run `python docs/figures.py`. It reads docs/results and docs/figures/papers.json and nothing else. With `--check` it
writes nothing and fails if a page's tables are not up to date.
"""

import csv
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from length_figure import costs_table, length_figure, read_costs, slopes_table
from marked import between, markdown

from hf_posswap.reporting.figures import (
    Axis,
    BarPanel,
    Figure,
    Guide,
    LinePanel,
    Provenance,
    Series,
    Table,
    category_axis,
    log_axis,
    number,
)
from hf_posswap.reporting.images import draw
from hf_posswap.results.groups import Group, as_group, read_results
from hf_posswap.results.kinds import CONTROL, STOCK, Row
from hf_posswap.results.reading import read_result

DOCS = Path(__file__).parent
PAGE, SPEED_PAGE, FOLDER, RESULTS = DOCS / "figures.md", DOCS / "speed.md", DOCS / "figures", DOCS / "results"
LENGTHS = RESULTS / "bench-cpu" / "lengths"
MODEL, STUDY, SWAPPED = "demo:gpt2", RESULTS / "study-small" / "gpt2.csv", RESULTS / "compare-gpt2.json"
HEALED_TOKENS = "224000"
SCRIPT = Path(__file__).name
BENCH_COMMAND = (
    "hf-posswap bench gpt2 --schemes sinusoidal,rope,t5,alibi --lengths 1024 --modes training,prefill "
    "--backends sdpa,dense-eager --output-dir docs/results/bench"
)
PARTS = (
    ("training", "Time of a training step"),
    ("prefill", "Time to read a text"),
    ("memory", "Peak memory, training"),
)

Curves = dict[str, list[tuple[float, float | None]]]
"""By scheme: length over the train length, and perplexity over the stock model's at the train length."""


def main() -> int:
    """Write the figures and the pages' tables, or check the tables under `--check`; return the exit status."""
    papers = json.loads((FOLDER / "papers.json").read_text(encoding="utf-8"))
    groups = read_results(RESULTS).groups
    panels = {
        "The paper: trained from scratch at 512": paper_curves(papers["extrapolation"]),
        "Here: GPT-2 of 256, healed on 1%": study_curves(),
        "Here: the same, swapped and no more": swapped_curves(as_group(read_result(SWAPPED))),
    }
    cost = costs(papers["cost"], groups)
    by_length = read_costs(LENGTHS)
    figures_page = between(
        PAGE.read_text(encoding="utf-8"), "extrapolation", markdown(extrapolation_table(panels)), SCRIPT
    )
    no_cost = "" if len(cost) > 1 else not_measured()
    slopes = f"{markdown(slopes_table(by_length))}\n{markdown(costs_table(by_length))}"
    pages = {
        PAGE: between(figures_page, "cost", markdown(cost_table(cost)) + no_cost, SCRIPT),
        SPEED_PAGE: between(SPEED_PAGE.read_text(encoding="utf-8"), "lengths", slopes, SCRIPT),
    }
    if "--check" in sys.argv:
        stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
        if stale:
            print(f"not up to date: {', '.join(stale)}. Run: python docs/figures.py", file=sys.stderr)
        return int(bool(stale))
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    draw(extrapolation_figure(panels, papers["source"]), FOLDER / "extrapolation.png")
    draw(cost_figure(cost, papers["source"]), FOLDER / "cost.png")
    draw(length_figure(by_length), FOLDER / "lengths.png")
    return 0


def paper_curves(record: Mapping[str, Any]) -> Curves:
    """Return the paper's perplexities over that of its sinusoidal model at the train length."""
    train_length, rows = record["train_length"], record["rows"]
    base = next(r["perplexity"] for r in rows if (r["scheme"], r["length"]) == (record["stock"], train_length))
    curves: Curves = {}
    for row in rows:
        value = row["perplexity"]
        curves.setdefault(row["scheme"], []).append((row["length"] / train_length, value and value / base))
    return curves


def study_curves() -> Curves:
    """Return what docs/results/study-small says of models calibrated, then healed at the rate that suits them.

    Means of seeds, same target tokens; with the control of that rate.
    """
    with STUDY.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["tokens"] == HEALED_TOKENS]
    losses: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["start"] in ("gentle", "stock") and row["scheme"] != CONTROL:
            scheme = {"control at a third of the rate": CONTROL}.get(row["scheme"], row["scheme"].partition(":")[0])
            losses.setdefault(scheme, {}).setdefault(int(row["length"]), []).append(float(row["above_stock"]))
    healed = {
        scheme: [(length / 256, math.exp(fmean(seeds))) for length, seeds in of_lengths.items()]
        for scheme, of_lengths in losses.items()
    }
    return {STOCK: [(1.0, 1.0)]} | healed


def swapped_curves(group: Group) -> Curves:
    """Return what compare measured of untrained swaps, over the stock model's perplexity at its train length."""
    rows = [row for row in group.rows if row["protocol"] == "same-targets" and row["stage"] in (STOCK, "swapped")]
    assert group.train_length is not None
    base = next(row["loss"] for row in rows if (row["stage"], row["length"]) == (STOCK, group.train_length))
    curves: Curves = {}
    for row in rows:
        if row["scheme"] != "learned":  # the stock model again
            value = None if row["loss"] is None else math.exp(row["loss"] - base)
            curves.setdefault(row["scheme"], []).append((row["length"] / group.train_length, value))
    return curves


def extrapolation_figure(panels: Mapping[str, Curves], source: str) -> Figure:
    """Return the figure of perplexity against length, all panels on the same two axes."""
    ratios = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    x = Axis("length, train length = 1", "log", tuple(ratios), tuple(f"{ratio:g}" for ratio in ratios))
    values = [value for curves in panels.values() for points in curves.values() for _, value in points]
    y = log_axis("perplexity, stock at its train length = 1", values)
    return Figure(
        name="extrapolation",
        title="Perplexity against length: the paper's models, and a pretrained one that was swapped",
        heading="",
        variant="",
        panels=tuple(
            LinePanel(title, x, y, tuple(line(key, points) for key, points in curves.items()), (Guide("x", 1.0, ""),))
            for title, curves in panels.items()
        ),
        caption="",
        table=Table((), ()),
        provenance=Provenance(
            versions=(
                f"Left: {source}; middle and right: {MODEL}, docs/results/study-small/gpt2.csv and compare-gpt2.json",
            )
        ),
    )


def line(key: str, points: Sequence[tuple[float, float | None]]) -> Series:
    """Return a curve as a series."""
    return Series(key, key, tuple(x for x, _ in points), tuple(y for _, y in points), background=key == STOCK)


def costs(record: Mapping[str, Any], groups: Iterable[Group]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return ratios to stock by place of measurement, part of the figure and scheme; of here only what was measured."""
    stock = next(row for row in record["rows"] if row["scheme"] == record["stock"])
    found: dict[str, dict[str, dict[str, float | None]]] = {
        f"paper, V100, {record['length']}": {
            "training": {row["scheme"]: stock["training"] / row["training"] for row in record["rows"]},
            "prefill": {row["scheme"]: stock["prefill"] / row["prefill"] for row in record["rows"]},
            "memory": {row["scheme"]: row["memory"] / stock["memory"] for row in record["rows"]},
        }
    }
    schemes = [row["scheme"] for row in record["rows"]]
    for (model, processor), measured in by_processor(groups).items():
        rows = [row for row in measured if row["scheme"] in schemes and row["time_ratio"] is not None]
        nearest = min((row["length"] for row in rows), key=lambda n: abs(n - record["length"]), default=None)
        for row in rows:
            if row["length"] == nearest:
                add_cost(found.setdefault(place_of(model, processor, row), {}), row)
    return found


def by_processor(groups: Iterable[Group]) -> dict[tuple[str, str], list[Row]]:
    """Return all rows of benchmarks by model and by the CPU's instructions, "" where a file does not name them."""
    found: dict[tuple[str, str], list[Row]] = {}
    for group in groups:
        for file in group.files if group.family == "bench" else ():
            processor = file.environment["hardware"].get("cpu_capability", "")
            found.setdefault((group.model, processor), []).extend(file.rows)
    return found


def place_of(model: str, processor: str, row: Row) -> str:
    """Return a short name of where and how a row was measured."""
    way = "dense bias" if row.get("backend") == "dense-eager" else row.get("backend")
    device = f"{row.get('device')} {processor}".rstrip()
    return f"{model}, {device} {row.get('dtype')}, {way}, {row['length']}"


def add_cost(place: dict[str, dict[str, float | None]], row: Row) -> None:
    """Put a row of a benchmark into the parts of the figure that it belongs to, if there are any."""
    if row["mode"] in ("training", "prefill"):
        place.setdefault(row["mode"], {})[row["scheme"]] = row["time_ratio"]
    if row["mode"] == "training":
        place.setdefault("memory", {})[row["scheme"]] = row.get("memory_ratio")


def cost_figure(found: Mapping[str, Mapping[str, Mapping[str, float | None]]], source: str) -> Figure:
    """Return the figure of speed and memory: bars by scheme, the paper's first."""
    schemes = list(next(iter(found.values()))["training"])
    of_part = {part: {place: parts[part] for place, parts in found.items() if part in parts} for part, _ in PARTS}
    return Figure(
        name="cost",
        title="What a scheme costs: the paper's numbers, and what was measured here",
        heading="",
        variant="",
        panels=tuple(
            BarPanel(
                title,
                category_axis("", [place.replace(",", "").replace(" ", "\n") for place in of_part[part]]),
                Axis("ratio, stock = 1"),
                tuple(bars(scheme, [ratios.get(scheme) for ratios in of_part[part].values()]) for scheme in schemes),
                (Guide("y", 1.0, "stock"),),
            )
            for part, title in PARTS
        ),
        caption="",
        table=Table((), ()),
        provenance=Provenance(versions=(f"Paper: {source}; the others: docs/results",)),
    )


def bars(scheme: str, values: Sequence[float | None]) -> Series:
    """Return a scheme's bars, one for each place."""
    return Series(scheme, scheme, tuple(float(index) for index in range(len(values))), tuple(values))


def extrapolation_table(panels: Mapping[str, Curves]) -> Table:
    """Return the numbers of the first figure."""
    rows = [
        (title, key, " · ".join(f"{x:.3g}×: {number(y)}" for x, y in points))
        for title, curves in panels.items()
        for key, points in curves.items()
    ]
    return Table(("panel", "scheme", "perplexity over stock's, by length over train length"), tuple(rows))


def cost_table(found: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Table:
    """Return the numbers of the second figure."""
    schemes = list(next(iter(found.values()))["training"])
    rows = [
        (place, title, *(number(parts[part].get(scheme)) for scheme in schemes))
        for place, parts in found.items()
        for part, title in PARTS
        if part in parts
    ]
    return Table(("measured", "ratio to stock", *schemes), tuple(rows))


def not_measured() -> str:
    """Return what to run where nothing was measured here."""
    said = "Nothing is measured here yet. This measures it, and `python docs/figures.py` adds it:"
    return f"\n{said}\n\n```\n{BENCH_COMMAND}\n```\n"


if __name__ == "__main__":
    sys.exit(main())

"""Time and memory against length, of stock and of each scheme: the figure and the tables of docs/speed.md.

Read from the bench.json files below docs/results/bench-cpu/lengths: seconds and bytes, not only their ratios.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from hf_posswap.reporting.figures import (
    Axis,
    Figure,
    Guide,
    LinePanel,
    Provenance,
    Series,
    Table,
    log_axis,
    numbered_axis,
)
from hf_posswap.results.kinds import STOCK
from hf_posswap.results.reading import read_result

MODE = "prefill"
THOUSAND = 1000


class Cost(NamedTuple):
    """What reading a text costs: seconds, and bytes at the peak, weights included."""

    seconds: float
    size: float


Curve = dict[int, Cost]
"""By length."""


class Costs(NamedTuple):
    """What was measured.

    Attributes:
        stock: of the unswapped model: at each length the median of its runs beside all schemes.
        swapped: of each scheme: the stock model's seconds times the ratio to the runs it took turns with, which a
            change of the machine's speed between two schemes does not move.
        hardware: what it was measured on.
    """

    stock: Curve
    swapped: dict[str, Curve]
    hardware: Mapping[str, Any]


def read_costs(folder: Path) -> Costs:
    """Return what the files below a folder say."""
    runs: dict[int, list[float]] = {}
    sizes: dict[int, list[int]] = {}
    cells: dict[str, dict[int, tuple[float, int]]] = {}
    hardware: Mapping[str, Any] = {}
    for path in sorted(folder.rglob("bench.json")):
        record = read_result(path)
        hardware = record.environment["hardware"]
        for row, measured in zip(record.rows, record.facts["measured"], strict=True):
            if row["mode"] != MODE or not measured:
                continue
            length, counted = row["length"], measured["bytes"]
            runs.setdefault(length, []).extend(measured["seconds"]["stock"])
            sizes.setdefault(length, []).append(sum(counted["stock"].values()))
            cells.setdefault(row["scheme"], {})[length] = (row["time_ratio"], sum(counted["other"].values()))
    stock = {length: Cost(median(runs[length]), median(sizes[length])) for length in sorted(runs)}
    swapped = {
        scheme: {length: Cost(stock[length].seconds * ratio, size) for length, (ratio, size) in sorted(known.items())}
        for scheme, known in cells.items()
    }
    return Costs(stock, swapped, hardware)


def exponent(curve: Curve) -> float:
    """Return the slope of a line through the logarithms: 1 where time grows as the length, 2 as its square."""
    return slope([math.log(length) for length in curve], [math.log(cost.seconds) for cost in curve.values()])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least squares line."""
    middle, level = fmean(x), fmean(y)
    return sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def added(curve: Curve, before: int, last: int) -> str:
    """Return the milliseconds that each token from one length to another costs, or a dash if one was not measured."""
    if before not in curve or last not in curve:
        return "–"
    return f"{(curve[last].seconds - curve[before].seconds) / (last - before) * THOUSAND:.3f}"


def held(curve: Curve) -> float:
    """Return the KiB that each token adds to the peak."""
    return slope(list(curve), [cost.size for cost in curve.values()]) / 1024


def slopes_table(costs: Costs) -> Table:
    """Return the slopes of each scheme beside those of the stock model over the same lengths."""
    before, last = list(costs.stock)[-2:]
    rows = []
    for scheme, curve in costs.swapped.items():
        pair = ({length: costs.stock[length] for length in curve}, curve)
        cells = [[f"{exponent(one):.2f}", added(one, before, last), f"{held(one):.1f}"] for one in pair]
        rows.append(
            (scheme, f"{min(curve)}–{max(curve)}", *(text for both in zip(*cells, strict=True) for text in both))
        )
    names = ("exponent of time", f"ms a token, {before}–{last}", "KiB a token")
    columns = (f"{name}: {whose}" for name in names for whose in ("stock", "swapped"))
    return Table(("scheme", "lengths", *columns), tuple(rows))


def costs_table(costs: Costs) -> Table:
    """Return seconds and megabytes of stock, and each scheme's ratios to them."""
    rows = [
        ("stock, seconds", *(f"{cost.seconds:.3g}" for cost in costs.stock.values())),
        ("stock, MB", *(f"{cost.size / 1e6:.0f}" for cost in costs.stock.values())),
    ]
    for scheme, curve in costs.swapped.items():
        for name, place, digits in (("time", 0, 2), ("memory", 1, 3)):
            ratios = (
                f"{curve[length][place] / cost[place]:.{digits}f}" if length in curve else "–"
                for length, cost in costs.stock.items()
            )
            rows.append((f"{scheme}, {name}", *ratios))
    return Table(("", *map(str, costs.stock)), tuple(rows))


def length_figure(costs: Costs) -> Figure:
    """Return the figure: time and memory, and time as a ratio, in which a steeper slope would rise."""
    x = numbered_axis("tokens", costs.stock)
    curves = {STOCK: costs.stock} | costs.swapped
    seconds = {key: [cost.seconds for cost in curve.values()] for key, curve in curves.items()}
    sizes = {key: [cost.size / 1e6 for cost in curve.values()] for key, curve in curves.items()}
    ratios = {
        key: [cost.seconds / costs.stock[length].seconds for length, cost in curve.items()]
        for key, curve in costs.swapped.items()
    }

    def lines(values: Mapping[str, Sequence[float]]) -> tuple[Series, ...]:
        return tuple(
            Series(key, key, tuple(map(float, curves[key])), tuple(of_key), background=key == STOCK)
            for key, of_key in values.items()
        )

    def flat(values: Mapping[str, Iterable[float]]) -> list[float]:
        return [value for of_key in values.values() for value in of_key]

    hardware = costs.hardware
    source = f"{hardware['processor']}, {hardware['cpu_capability']}, threads: {hardware['torch_threads']}, float32"
    return Figure(
        name="lengths",
        title="What reading a text costs by its length: a layer of SmolLM2, swapped and unswapped",
        heading="",
        variant="",
        panels=(
            LinePanel("Time", x, log_axis("seconds", flat(seconds)), lines(seconds)),
            LinePanel("Peak memory, MB", x, log_axis("MB", flat(sizes)), lines(sizes)),
            LinePanel("Time, stock = 1", x, Axis("ratio"), lines(ratios), (Guide("y", 1.0, "stock"),)),
        ),
        caption="",
        table=Table((), ()),
        provenance=Provenance(versions=(f"{source}; docs/results/bench-cpu/lengths",)),
    )

"""Times two functions in turn, so that a change of the machine's speed affects both alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

SHORTEST = 0.05
"""Seconds. A faster function is called several times for each measurement."""


class Ratio(NamedTuple):
    """Median, smallest and largest of the repeats' ratios."""

    median: float
    low: float
    high: float


class Times(NamedTuple):
    """Seconds for one call of each function, one entry for each repeat."""

    stock: list[float]
    other: list[float]

    def ratio(self) -> Ratio:
        """Return the ratios of other to stock; each is relative to the mean of the stock runs just before and after."""
        before, after = self.stock[:-1], self.stock[1:]
        pairs = zip(self.other, before, after, strict=True)
        ratios = [other / ((first + last) / 2) for other, first, last in pairs]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def in_turn(stock: Callable[[], object], other: Callable[[], object], repeats: int, device: str) -> Times:
    """Time stock, other, stock, …, other, stock. Both must have run before, so that no first-call cost is measured.

    Args:
        stock: the reference, timed repeats + 1 times.
        other: the function to compare, timed `repeats` times.
        repeats: number of ratios.
        device: "cpu" or "cuda"; on CUDA each measurement waits for the device.
    """
    once = seconds(stock, 1, device)
    calls = max(1, round(SHORTEST / max(once, 1e-6)))
    times = Times([once if calls == 1 else seconds(stock, calls, device)], [])
    for _ in range(repeats):
        times.other.append(seconds(other, calls, device))
        times.stock.append(seconds(stock, calls, device))
    return times


def seconds(function: Callable[[], object], calls: int, device: str) -> float:
    """Return the mean wall time of `calls` calls."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)

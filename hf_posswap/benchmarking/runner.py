"""Runs a benchmark cell by cell, stock and swapped model in turn within each cell, so that a run can be resumed."""

import gc
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from hf_posswap.architectures import architecture_of
from hf_posswap.benchmarking.dense import dense_mask, dense_model, needed_bytes
from hf_posswap.benchmarking.memory import peak_bytes
from hf_posswap.benchmarking.settings import (
    ATTENTION_MODES,
    DENSE,
    STARTUP_MODES,
    BenchmarkCell,
    BenchmarkError,
    BenchmarkSettings,
    cell_of,
)
from hf_posswap.benchmarking.shapes import check_model, stock_model, swapped_copy
from hf_posswap.benchmarking.startup import import_times, load_times
from hf_posswap.benchmarking.timing import Times, in_turn
from hf_posswap.benchmarking.work import MakeMask, Work, attention_work, model_work
from hf_posswap.errors import PosSwapError, SourceError
from hf_posswap.swapped.questions import longest_position

Row = dict[str, Any]
Progress = Callable[[int, int], None]
Save = Callable[[Sequence[Row]], object]


class Pair(NamedTuple):
    """The two models that a cell compares.

    Attributes:
        stock: the unswapped model.
        other: the swapped model, or the stock model with a dense bias.
        mask: function that computes the dense bias, if `other` needs one.
    """

    stock: Any
    other: Any
    mask: MakeMask | None = None


def run(
    settings: BenchmarkSettings, known: Sequence[Row] = (), save: Save | None = None, progress: Progress | None = None
) -> list[Row]:
    """Measure every cell that has not been measured yet.

    Args:
        settings: settings of the benchmark.
        known: rows of an earlier run under the same `BenchmarkSettings.conditions`; their cells are not measured again.
        save: called with all rows so far after each cell.
        progress: called with (cells done, number of cells).

    Returns:
        A row for each cell: the columns of bench.csv, and under "measured" the seconds and bytes of the ratios. A cell
        that cannot be measured has no ratios, and a note with the reason.

    Raises:
        SourceError: the model does not exist.
        BenchmarkError: the device does not exist, or the model has fewer layers than `settings.layers`.
    """
    check_device(settings.device)
    check_model(settings)
    cells = list(settings.cells())
    rows = list(known)
    done = {cell_of(row) for row in rows}
    models = _Models(settings)
    for number, cell in enumerate(cells):
        if cell not in done:
            rows.append(_measured(settings, cell, models))
            if save is not None:
                save(rows)
        if progress is not None:
            progress(number + 1, len(cells))
    return rows


def check_device(device: str) -> None:
    """Refuse a device that is not available.

    Raises:
        BenchmarkError: it is not available.
    """
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise BenchmarkError(f"there is no device {device!r} here. Allowed: cpu, and cuda where torch sees a GPU.")


class _Models:
    """Holds one pair of models at a time; the next pair replaces it."""

    def __init__(self, settings: BenchmarkSettings) -> None:
        self.settings = settings
        self._stock_key: tuple[str, str] | None = None
        self._pair_key: tuple[str, str, str] | None = None
        self._stock: Any = None
        self._pair: Pair | PosSwapError | None = None

    def pair(self, cell: BenchmarkCell) -> Pair:
        """Return the pair for a cell.

        Raises:
            PosSwapError: the model cannot use the scheme, or the backend does not support it.
        """
        attention = "sdpa" if cell.backend == DENSE else cell.backend
        if self._stock_key != (cell.dtype, attention):
            self._stock = self._pair = self._pair_key = None
            self._stock = stock_model(self.settings, cell.dtype, attention)
            self._stock_key = (cell.dtype, attention)
        if self._pair_key != (cell.scheme, cell.dtype, cell.backend):
            self._pair = None
            gc.collect()
            self._pair = self._made(cell)
            self._pair_key = (cell.scheme, cell.dtype, cell.backend)
        if isinstance(self._pair, PosSwapError):
            raise self._pair
        assert self._pair is not None
        return self._pair

    def _made(self, cell: BenchmarkCell) -> Pair | PosSwapError:
        try:
            swapped = swapped_copy(self._stock, cell.scheme)
        except PosSwapError as error:
            return error
        if cell.backend == DENSE:
            return Pair(self._stock, dense_model(self._stock), dense_mask(swapped))
        return Pair(self._stock, swapped)


def _measured(settings: BenchmarkSettings, cell: BenchmarkCell, models: _Models) -> Row:
    """Return the row of a cell."""
    try:
        if cell.mode in STARTUP_MODES:
            times = import_times(settings.repeats) if cell.mode == "import" else load_times(settings, cell)
            return make_row(settings, cell, times)
        pair = models.pair(cell)
        reason = gap(settings, cell, pair)
        if reason is not None:
            return make_row(settings, cell, note=reason)
        return _compared(settings, cell, pair)
    except SourceError:  # not a gap of this cell: the model cannot be loaded at all
        raise
    except PosSwapError as error:
        return make_row(settings, cell, note=str(error))


def _compared(settings: BenchmarkSettings, cell: BenchmarkCell, pair: Pair) -> Row:
    make = attention_work if cell.mode in ATTENTION_MODES else model_work
    stock = make(cell.mode, pair.stock, cell.length, settings)
    other = make(cell.mode, pair.other, cell.length, settings, pair.mask)
    for work in (stock, other):
        warm_up(work, settings.device)
    memory = [memory_of(work, settings.device) for work in (stock, other)]
    times = in_turn(stock.call, other.call, settings.repeats, settings.device)
    return make_row(settings, cell, times, memory)


def warm_up(work: Work, device: str) -> None:
    """On CUDA, run the work once so that kernels are compiled; on CPU the run that measures memory warms up."""
    if device.startswith("cuda"):
        work.call()


def memory_of(work: Work, device: str) -> dict[str, int]:
    """Return the bytes that exist before the call, and the peak of the call above them."""
    return {"resident": work.resident_bytes(), "peak": peak_bytes(work.call, device)}


def gap(settings: BenchmarkSettings, cell: BenchmarkCell, pair: Pair) -> str | None:
    """Return why a cell cannot be measured, or None if it can."""
    causal = architecture_of(pair.stock.config).is_causal(pair.stock.config)
    if cell.mode == "decode" and not causal:
        return "an encoder does not decode"
    for model in pair[:2]:
        limit = longest_position(model)
        if limit is not None and cell.length + (cell.mode == "decode") > limit:
            return f"the {'stock' if model is pair.stock else 'swapped'} model has {limit} positions"
    trains = cell.mode in ("training", "attention-training")
    if cell.backend == "flex_attention" and settings.device == "cpu" and trains:
        return "FlexAttention has no backward pass on CPU"
    if cell.backend == DENSE and cell.mode != "decode":
        needed, there = needed_bytes(pair.stock, cell.length, settings.batch), _memory(settings.device)
        if needed > there / 2:
            return f"would hold about {needed / 2**30:.0f} GiB at once, of {there / 2**30:.0f}"
    return None


def _memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def make_row(
    settings: BenchmarkSettings,
    cell: BenchmarkCell,
    times: Times | None = None,
    memory: Sequence[dict[str, int]] = (),
    note: str = "",
) -> Row:
    """Return a cell's row: ratios, and under "measured" the seconds and bytes of stock and swapped model."""
    row: Row = {"model": settings.model, "device": settings.device, **cell._asdict()}
    ratio = times.ratio() if times is not None else None
    row["time_ratio"], row["time_ratio_low"], row["time_ratio_high"] = ratio or (None, None, None)
    totals = [entry["resident"] + entry["peak"] for entry in memory]
    row["memory_ratio"] = totals[1] / totals[0] if totals else None
    row["repeats"] = settings.repeats if times is not None else 0
    row["note"] = note
    if times is not None:
        row["measured"] = {"seconds": {"stock": times.stock, "other": times.other}}
    if memory:
        row["measured"]["bytes"] = {"stock": memory[0], "other": memory[1]}
    return row

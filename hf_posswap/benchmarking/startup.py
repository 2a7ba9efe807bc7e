"""The time before the first token: importing the package and loading a model."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_posswap.auto import auto_class
from hf_posswap.benchmarking.settings import BenchmarkCell, BenchmarkSettings
from hf_posswap.benchmarking.shapes import SHAPES, stock_model
from hf_posswap.benchmarking.timing import Times, in_turn
from hf_posswap.sources import load_model

IMPORT = "import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)"


def import_times(repeats: int) -> Times:
    """Return the seconds of `import transformers` and of `import hf_posswap, transformers`, in fresh processes."""
    stock, ours = "transformers", "hf_posswap, transformers"
    _seconds_of_import(ours)  # writes byte code and fills the page cache
    times = Times([_seconds_of_import(stock)], [])
    for _ in range(repeats):
        times.other.append(_seconds_of_import(ours))
        times.stock.append(_seconds_of_import(stock))
    return times


def _seconds_of_import(modules: str) -> float:
    script = IMPORT.format(modules=modules)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def load_times(settings: BenchmarkSettings, cell: BenchmarkCell) -> Times:
    """Return the seconds of `from_pretrained` from a folder, without and with `pos_scheme`."""
    with _loader(settings, cell) as load:
        load()
        load(pos_scheme=cell.scheme)
        return in_turn(load, lambda: load(pos_scheme=cell.scheme), settings.repeats, settings.device)


@contextmanager
def _loader(settings: BenchmarkSettings, cell: BenchmarkCell) -> Iterator[Callable[..., Any]]:
    """Yield a function that loads the model from disk."""
    if settings.model not in SHAPES:
        yield lambda **arguments: load_model(settings.model, dtype=cell.dtype, **arguments)
        return
    drop_in: Any = auto_class("AutoModel")
    with tempfile.TemporaryDirectory() as folder:
        stock_model(settings, cell.dtype, "sdpa").save_pretrained(folder)
        yield lambda **arguments: drop_in.from_pretrained(folder, dtype=getattr(torch, cell.dtype), **arguments)

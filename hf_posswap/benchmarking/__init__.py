"""Benchmark of a swapped model: time and peak memory as ratios to the unswapped model, measured in the same run."""

from hf_posswap.benchmarking.runner import run
from hf_posswap.benchmarking.settings import BACKENDS, MODES, BenchmarkError, Settings

__all__ = ["BACKENDS", "MODES", "BenchmarkError", "Settings", "run"]

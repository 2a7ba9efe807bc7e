"""Ratios are of neighbouring runs; memory is counted to the byte."""

import time

import pytest
import torch
from torch.nn import functional as F

from hf_posswap.benchmarking.memory import cpu_allocations, peak_bytes
from hf_posswap.benchmarking.timing import Times, in_turn


def test_ratios_compare_each_run_with_the_stock_runs_around_it() -> None:
    # The machine becomes four times as slow half-way; the other function takes twice as long throughout.
    times = Times(stock=[1.0, 1.0, 4.0, 4.0], other=[2.0, 5.0, 8.0])
    assert times.ratio() == (2.0, 2.0, 2.0)


def test_spread_is_smallest_and_largest() -> None:
    assert Times(stock=[1.0, 1.0, 1.0, 1.0], other=[3.0, 1.0, 1.5]).ratio() == (1.5, 1.0, 3.0)


def test_functions_run_in_turn_and_short_ones_several_times() -> None:
    order: list[str] = []
    times = in_turn(lambda: (order.append("stock"), time.sleep(0.06)), lambda: order.append("other"), 2, "cpu")
    assert order == ["stock", "other", "stock", "other", "stock"]
    assert len(times.other) == 2
    assert len(times.stock) == 3
    assert min(times.stock) >= 0.06
    calls: list[None] = []
    in_turn(lambda: time.sleep(0.005), lambda: calls.append(None), 1, "cpu")
    assert len(calls) > 1


def test_peak_is_what_is_held_at_once() -> None:
    mebibyte = 2**20

    def call() -> None:
        first = torch.empty(3 * mebibyte, dtype=torch.uint8)
        del first
        second, third = torch.empty(2 * mebibyte, dtype=torch.uint8), torch.empty(2 * mebibyte, dtype=torch.uint8)
        del second, third

    assert peak_bytes(call, "cpu") == 4 * mebibyte
    assert sum(cpu_allocations(call)) == 0


def test_memory_inside_kernels_is_counted() -> None:
    q = torch.randn(1, 2, 128, 16)
    fused = peak_bytes(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True), "cpu")
    assert fused > q.untyped_storage().nbytes(), "the result, and what the kernel holds for itself"


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    peak_bytes(lambda: torch.empty(8), "cpu")
    assert capfd.readouterr() == ("", "")

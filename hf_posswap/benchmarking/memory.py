"""Peak memory of one call: every byte that torch's allocator hands out, inside kernels too.

On CUDA it is the allocator's own count. On CPU the profiler reports each allocation and release, from which the peak
follows exactly and the same in every run; the peak of a process's resident memory would hold libraries, heaps that are
never given back, and whatever ran before. Scratch memory that MKL and oneDNN allocate by themselves is not seen.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Return how far the memory in use rises above its level before the call, in bytes."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    level = peak = 0
    for change in cpu_allocations(function):
        level += change
        peak = max(peak, level)
    return peak


def cpu_allocations(function: Callable[[], object]) -> list[int]:
    """Return the bytes of each allocation (positive) and release (negative) during the call, in order."""
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent_start_and_stop():
        profiler.start()
    function()
    with _silent_start_and_stop():
        profiler.stop()
    assert profiler.profiler is not None, "it has run"
    results: Any = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@contextlib.contextmanager
def _silent_start_and_stop() -> Iterator[None]:
    """Keep what the profiler's library writes on file descriptor 2, past Python's stderr, off the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)

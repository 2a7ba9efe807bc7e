"""Peak memory of one call: all bytes that torch's allocator allocates, inside kernels too.

On CUDA the allocator reports its peak. On CPU the profiler reports each allocation and release, from which the peak is
computed exactly and reproducibly. The peak of the process's resident memory would include libraries, heaps that are
never returned and earlier allocations. Scratch memory that MKL and oneDNN allocate themselves is not counted.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Return the peak of the memory in use during the call minus that before it, in bytes."""
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
    """Suppress the output that the profiler's library writes directly to file descriptor 2."""
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

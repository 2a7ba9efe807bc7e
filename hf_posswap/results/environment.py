"""The environment of a result: versions, hardware and command, which every result file contains."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("hf_posswap", "transformers", "torch", "accelerate", "peft", "safetensors", "tokenizers", "gguf", "numpy")


def collect_environment(command: Sequence[str] | None = None) -> dict[str, object]:
    """Return the information needed to reproduce a measurement, as JSON-ready values.

    Args:
        command: the command line; this process's own if None.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command if command is not None else own_command()),
        "python": platform.python_version(),
        "versions": installed_versions(),
        "hardware": hardware(),
    }


def own_command() -> list[str]:
    """Return the command line of this process, in the form in which a user would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name:
        return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def installed_versions() -> dict[str, str | None]:
    """Return the version of each package that can change a number; None if it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def hardware() -> dict[str, object]:
    """Return the processor, its instruction sets by torch's names, cores, threads, memory and accelerators."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the processor; on Linux /proc/cpuinfo is more precise than Python's `platform`."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    """Return the physical memory in GiB; None if the system does not report it."""
    try:
        pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(pages * page_size / 2**30, 1)

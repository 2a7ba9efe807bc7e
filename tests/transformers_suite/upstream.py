"""transformers' own test files as the package `tests`, with stand-ins for what a source distribution leaves out.

The source distribution on the package registry holds `tests/test_*.py`, and nothing of the folders below `tests/`. A
clone of transformers, at the tag of the installed release, has the tests of `generate` too.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class Nothing:
    """Stands for a mixin without tests."""


def run_distributed(world_size: int) -> Callable[..., Any]:
    """Stands for transformers' own helper: runs `function(rank, *args)` in processes that are connected by gloo."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            with tempfile.TemporaryDirectory() as folder:
                context = multiprocessing.get_context("spawn")
                ranks = [
                    context.Process(target=_rank, args=(rank, world_size, port, Path(folder), function, args))
                    for rank in range(world_size)
                ]
                for rank in ranks:
                    rank.start()
                for rank in ranks:
                    rank.join()
                failed = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())]
            codes = [rank.exitcode for rank in ranks]
            if any(codes):
                raise AssertionError(f"ranks ended with {codes}\n" + "\n".join(failed))

        return run

    return decorate


def _rank(rank: int, world_size: int, port: int, folder: Path, function: Callable[..., None], args: Any) -> None:
    import traceback

    from torch import distributed

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
    }  # fmt: skip
    distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        function(rank, *args)
    except BaseException:
        (folder / str(rank)).write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)  # the others wait for this rank, and gloo would wait for them
    distributed.destroy_process_group()


STAND_INS = {
    "generation.test_utils": {"GenerationTesterMixin": Nothing},
    "distributed_testing_utils": {"run_distributed": run_distributed},
}
"""What the test files import, where the folder does not have it."""
NEVER = {"exporters.test_export": {"ExportTesterMixin": Nothing, "ExportGenerateTesterMixin": Nothing}}
"""What stays out even where the folder has it: exports are no part of what is compared here, and take hours."""


def use(folder: Path) -> list[str]:
    """Make transformers' test files importable as `tests.…`; return the names of the modules that are stand-ins.

    Raises:
        FileNotFoundError: the folder has no `test_modeling_common.py`.
    """
    if not (folder / "test_modeling_common.py").is_file():
        raise FileNotFoundError(f"{folder} has no test_modeling_common.py: it is not transformers' folder `tests`")
    package = ModuleType("tests")
    package.__path__ = [str(folder)]
    sys.modules["tests"] = package
    files = {name: folder / f"{name.replace('.', '/')}.py" for name in STAND_INS}
    lacking = {name: names for name, names in STAND_INS.items() if not files[name].exists()}
    for name, names in (lacking | NEVER).items():
        parent = f"tests.{name}".rpartition(".")[0]
        if parent not in sys.modules:
            sys.modules[parent] = ModuleType(parent)
            sys.modules[parent].__path__ = [str(folder / parent.removeprefix("tests").strip(".").replace(".", "/"))]
        module = ModuleType(f"tests.{name}")
        vars(module).update(names)
        sys.modules[f"tests.{name}"] = module
    return sorted(lacking)


def load(name: str) -> Any:
    """Import `tests.NAME`."""
    return importlib.import_module(f"tests.{name}")

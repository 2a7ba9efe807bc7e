"""What all tests share: no network, few threads, and the real models."""

import functools
import gc
import importlib.util
import os
from collections.abc import Iterator

# Before torch and transformers are imported: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

from hf_posswap.sources import ModelSource, resolve_model


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among the workers: with a thread pool in each of them, they would fight over every core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)  # after -k and -m have taken tests out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device or packages of the extra `neighbours` where there are none; slow tests go first."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        for marker in item.iter_markers("needs"):
            missing = [name for name in marker.args if not importable(name)]
            if missing and "REQUIRE_NEIGHBOURS" not in os.environ:
                reason = f"needs {', '.join(missing)}, of the extra `neighbours`; make test-neighbours has it"
                item.add_marker(pytest.mark.skip(reason=reason))
    items[:] = shared_out(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def pytest_collection_finish() -> None:
    """Collect garbage less often, and not in torch, transformers and twenty thousand tests: a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 20, 20)


def shared_out(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Put slow tests at the beginning of each worker's share, so that no worker is alone with one at the end.

    `--dist worksteal` gives each worker one stretch of the list. The slow tests of a file stay together, because they
    often share what one of them makes, but for those that take minutes: they go to whichever worker has least to do.
    """
    if workers == 1:
        return items
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow"):
            groups.setdefault(item.nodeid if seconds(item) >= ALONE else str(item.path), []).append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for group in sorted(groups.values(), key=lambda group: sum(map(seconds, group)), reverse=True):
        min(shares, key=lambda share: sum(map(seconds, share))).extend(group)
    others = [item for item in items if not item.get_closest_marker("slow")]
    result: list[pytest.Item] = []
    for worker, share in enumerate(shares):
        # As many for each: what is left of a stretch is filled up with quick tests, in their order.
        end = len(items) * (worker + 1) // workers
        quick = max(0, end - len(result) - len(share)) if worker < workers - 1 else len(others)
        result += share + others[:quick]
        del others[:quick]
    return result


ALONE = 100
"""Seconds from which a test is worth a worker of its own."""


def seconds(item: pytest.Item) -> float:
    """About how long a slow test takes: what its marker says."""
    marker = item.get_closest_marker("slow")
    assert marker is not None
    return float(marker.kwargs.get("seconds", 20))


def importable(name: str) -> bool:
    """Whether a module is installed, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not installed
        return False


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make every test repeatable alone and in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def gguf_parsed_once() -> Iterator[None]:
    """Have gguf parse a file once, and make its table of tensors' names once: 11 of the 14 s that demo:llama takes.

    transformers asks for both again with every module of a model and every part of a checkpoint. Neither changes.
    """
    if not importable("gguf"):  # the tests marked `gpu` run where only torch and transformers are
        yield
        return
    import gguf

    @functools.lru_cache(maxsize=1)
    def parsed(path: str, size: int, changed: int) -> gguf.GGUFReader:
        return read(path)

    def reader(path: str) -> gguf.GGUFReader:
        facts = os.stat(path)
        return parsed(os.fspath(path), facts.st_size, facts.st_mtime_ns)

    read, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = reader, functools.cache(names)
    yield
    gguf.GGUFReader, gguf.get_tensor_name_map = read, names


@pytest.fixture(scope="session")
def gpt2_books_path() -> Path:
    """Folder of the real small GPT-2: 256 learned positions, float16."""
    return Path(resolve_model("demo:gpt2").path)


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """Folder of a real BERT encoder: 512 learned positions."""
    return Path(resolve_model("demo:bert").path)


@pytest.fixture(scope="session")
def smollm2_source() -> ModelSource:
    """A real Llama of 135M parameters, as a GGUF file."""
    return resolve_model("demo:llama")

"""What all tests share: no network, few threads, and the real models."""

import importlib.util
import os

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device or packages of the extra `neighbours` where there are none."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        for marker in item.iter_markers("needs"):
            missing = [name for name in marker.args if not importable(name)]
            if missing and "REQUIRE_NEIGHBOURS" not in os.environ:
                reason = f"needs {', '.join(missing)}, of the extra `neighbours`; make test-neighbours has it"
                item.add_marker(pytest.mark.skip(reason=reason))


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

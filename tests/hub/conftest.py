"""A Hub on loopback, real checkpoints to publish, and processes that talk to it by huggingface_hub's client."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from hf_posswap.commands import app
from tests import warm
from tests.hub.server import TOKEN, HubServer, running_hub

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture
def environment(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """Environment of a process that uses the Hub of this test, and a home of its own."""
    return os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run Python, or `hf-posswap` if the first argument is its name, in a fresh process below `tmp_path`."""

    def run(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        known = {key: value for key, value in (environment | changes).items() if value is not None}
        command = ["-m", "hf_posswap.cli", *arguments[1:]] if arguments[0] == "hf-posswap" else list(arguments)
        return warm.run(command, env=known, cwd=tmp_path)

    return run


@pytest.fixture
def client(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """Let huggingface_hub in this process use the Hub of this test; waits between tries take no time."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture(scope="session")
def swapped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real small GPT-2 with ALiBi, as `hf-posswap swap` saves it."""
    folder = tmp_path_factory.mktemp("swapped") / "gpt2-alibi"
    arguments = ["swap", "demo:gpt2", "--pos-scheme", "alibi", "--output-dir", str(folder)]
    typed = mock.patch("hf_posswap.results.environment.own_command", return_value=["hf-posswap", *arguments])
    with typed:  # or else swap.json would tell of pytest
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def swapped(swapped_once: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(swapped_once, tmp_path / "gpt2-alibi"))


def contains(folder: Path, secret: str) -> list[str]:
    """Return the files below a folder that hold a secret."""
    found: list[Any] = [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    return [str(path) for path in found]

"""`hf-posswap evaluate` in processes of its own: killed and run again, and shared by two."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.training import processes

PARTS = 10


def command(output: Path, text: Path) -> list[str]:
    measured = [
        "--lengths",
        "70,140,300",
        "--tokens",
        "1000",
        "--measure",
        "loss,key-tokens,positions,sliding",
        "--seed",
        "3",
    ]
    return ["evaluate", "demo:gpt2", "--text", str(text), *measured, "--output-dir", str(output)]


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return processes.short_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """What one process writes that nothing breaks off."""
    folder = tmp_path_factory.mktemp("whole")
    result = processes.succeeded(command(folder, text))
    assert f"(1/{PARTS}) windows-70:" in result.stderr
    assert set(tables(folder)) == {"lengths.csv", "positions.csv"}
    return folder


@pytest.mark.slow
def test_killed_midway_it_goes_on_to_the_same_files(whole: Path, text: Path, tmp_path: Path) -> None:
    process = processes.start(command(tmp_path / "out", text))
    processes.wait_for(tmp_path / "out" / "unfinished" / "part-windows-70.json", process)
    os.kill(process.pid, signal.SIGKILL)
    assert processes.ended(process).returncode == -signal.SIGKILL
    assert tables(tmp_path / "out") == {}
    finished = len(list((tmp_path / "out" / "unfinished").glob("part-*.json")))
    assert 1 <= finished < PARTS
    again = processes.succeeded(command(tmp_path / "out", text))
    assert f"going on: {finished} of {PARTS} parts are measured already" in again.stderr
    assert again.stderr.count(f"/{PARTS}) ") == PARTS - finished
    assert tables(tmp_path / "out") == tables(whole)


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(whole: Path, text: Path, tmp_path: Path) -> None:
    two = processes.launched("cpu_two_processes.yaml")
    result = processes.succeeded(command(tmp_path, text), *two, ACCELERATE_USE_CPU="true")
    assert tables(tmp_path) == tables(whole)
    assert json.loads((tmp_path / "lengths.json").read_text())["processes"] == 2
    assert result.stderr.count("windows-70:") == 1
    assert result.stdout.count("Wrote:") == 1
    refused = processes.run(command(tmp_path, text), *two, ACCELERATE_USE_CPU="true")
    assert refused.returncode != 0
    assert "holds results already" in refused.stderr

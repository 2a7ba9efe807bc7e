"""A comparison that is killed goes on where it stopped, in processes of its own."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.training.processes import PATIENCE, ended, start, succeeded

WHAT = ["compare", "--model", "demo:gpt2", "--text", "demo:book/test", "--schemes", "t5:per_layer=true"]
HOW = ["--lengths", "64", "--tokens", "256", "--calibrate", "--calibration-tokens", "512", "--control"]
HEALED = ["--heal-tokens", "256", "--heal-length", "32", "--batch-size", "2", "--train-file", "demo:book/train"]


def command(folder: Path) -> list[str]:
    return [*WHAT, *HOW, *HEALED, "--output-dir", str(folder)]


def cells_in(folder: Path) -> int:
    path = folder / "compare.json"
    return len(json.loads(path.read_text())["cells"]) if path.exists() else 0


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_bytes_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    succeeded(command(whole))
    process = start(command(broken))
    until = time.monotonic() + PATIENCE
    while cells_in(broken) < 3:  # at any moment compare.json is whole, or json.loads would raise
        assert process.poll() is None, ended(process).stderr
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert ended(process).returncode == -signal.SIGKILL
    before = cells_in(broken)
    (broken / ".compare-half.json").write_text("half of {")  # as if it had been killed while it wrote
    assert 3 <= before < 5
    again = succeeded(command(broken))
    assert f"going on after {before} of 5 points" in again.stderr
    assert (broken / "compare.csv").read_bytes() == (whole / "compare.csv").read_bytes()
    assert sorted(path.name for path in broken.iterdir()) == ["compare.csv", "compare.json", "compare.png"]

"""The ten minutes on a GPU, rehearsed on the CPU: every step, stopped half way, and gone on with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_backends
from hf_posswap.benchmarking.settings import BenchmarkSettings
from tests.documents.commands import check_hf_posswap
from tests.training.processes import ended, wait_for

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "hf_posswap" / "assets" / "gpt2-books"
"""Stands for SmolLM2."""


def started(output: Path, *options: str) -> "subprocess.Popen[str]":
    folders = ["--output-dir", str(output), "--work-dir", str(output / "work")]
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", *folders, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment["PYTEST_ADDOPTS"] = "-p no:timeout"  # where the GPU is, pytest may be there without its plugins
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=output, start_new_session=True
    )


def record_of(output: Path) -> dict[str, Any]:
    return json.loads((output / gpu.RECORD).read_text(encoding="utf-8"))["steps"]


@pytest.mark.slow
def test_every_step_runs_in_a_rehearsal_that_is_stopped_half_way_and_gone_on_with(tmp_path: Path) -> None:
    options = ("--smollm2", str(MODEL), "--seconds", "600")
    first = started(tmp_path, *options)
    wait_for(tmp_path / "bench-smollm2" / "bench.json", first)
    os.kill(first.pid, signal.SIGINT)
    stopped = ended(first)
    assert stopped.returncode == gpu.INTERRUPTED, stopped.stderr
    before = record_of(tmp_path)
    assert {"environment", "tests", "backends", "bench-smollm2"} <= before.keys()
    assert "smollm2" not in before

    result = ended(started(tmp_path, *options))
    record = record_of(tmp_path)
    assert result.returncode == 0, (result.stderr, record)
    assert "bench-smollm2: done already" in result.stdout
    assert {name: said["outcome"] for name, said in record.items()} == dict.fromkeys(record, gpu.DONE)
    assert list(record) == ["environment", "tests", "backends", "bench-smollm2", "bench-gpt2", "heal-gpt2", "smollm2"]
    assert record["backends"] == before["backends"]

    versions = json.loads((tmp_path / "environment" / "environment.json").read_text(encoding="utf-8"))["versions"]
    assert torch.__version__.startswith(versions["torch"])  # which may go on with the CUDA it was built for
    healed = json.loads((tmp_path / "smollm2" / "healed" / "healing.json").read_text(encoding="utf-8"))
    assert {"healed", "control"} <= healed["evaluation"].keys()
    assert json.loads((tmp_path / "heal-gpt2" / "against-cpu.json").read_text(encoding="utf-8"))["rows"]
    assert not [path for path in tmp_path.rglob("*.safetensors") if (tmp_path / "work") not in path.parents]


def test_a_step_that_runs_out_of_time_is_stopped_and_named(tmp_path: Path) -> None:
    result = ended(started(tmp_path, "--only", "heal-gpt2", "smollm2", "--seconds", "14"))
    assert result.returncode == 0, result.stderr
    record = record_of(tmp_path)
    assert record["heal-gpt2"]["outcome"] == gpu.UNFINISHED
    assert record["smollm2"]["outcome"] == gpu.LEFT_OUT
    assert "--smollm2" in record["smollm2"]["reason"]


@pytest.mark.parametrize("sizes", [gpu.FULL, gpu.TINY], ids=["full", "tiny"])
def test_its_commands_exist(sizes: gpu.Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def recorded(words: list[str]) -> int:
        commands.append(words)
        if words[0] == "finetune":
            folder = Path(words[-1])
            folder.mkdir(parents=True, exist_ok=True)
            history = [{"step": 1, "loss": 1.0, "tokens_per_second": 100.0}]
            (folder / "healing.json").write_text(json.dumps({"healing": {"tokens": 64, "history": history}}))
        return 0

    monkeypatch.setattr(gpu, "hf_posswap", recorded)
    for name, run in {
        "bench": gpu.bench("smollm2", sizes),
        "gpt2": gpu.heal_gpt2(sizes),
        "smollm2": gpu.heal_smollm2(sizes, "folder", "books", ends=1e9),
    }.items():
        (tmp_path / name).mkdir()
        assert run(tmp_path / name) == 0
    for words in commands:
        check_hf_posswap(words)
    tokens = json.loads((tmp_path / "smollm2" / "tokens.json").read_text(encoding="utf-8"))["tokens"]
    assert ["--tokens", str(tokens)] in [commands[-1][place : place + 2] for place in range(len(commands[-1]))]


def test_errors_are_small_refusals_are_named_and_a_second_run_measures_nothing_anew(tmp_path: Path) -> None:
    settings = BenchmarkSettings(
        model="smollm2", schemes=("t5", "transformer_xl"), dtypes=("float32",), lengths=(20,), layers=1
    )
    for _ in range(2):
        gpu_backends.run(settings, tmp_path, ("eager", "sdpa"))
        rows = json.loads((tmp_path / "backends.json").read_text(encoding="utf-8"))["rows"]
        assert len(rows) == 3 * 2 * len(gpu_backends.WORKS)
        # float32 against float64 through one layer; a wrong bias or mask is an error of order 1.
        assert all(row["error"] < 1e-4 for row in rows), rows

"""Healing runs in processes of their own: how to start them, break them and read what they leave."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests import warm

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGURATIONS = REPOSITORY / "examples" / "accelerate"
BOOK = REPOSITORY / "hf_posswap" / "assets" / "books" / "test" / "frankenstein.txt"
PATIENCE = 600
"""Seconds after which a process counts as hung."""
PLAIN = (sys.executable, "-m", "hf_posswap.cli")

BREAKS = '''
import os, resource, signal, sys
from hf_posswap.training import checkpoints

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs of a shell's background are born deaf to it
how, step = sys.argv.pop(1), sys.argv.pop(1)
save_file = checkpoints.save_file

def breaking(tensors, path):
    """Write a checkpoint's files until the optimizer's of one step, and let it happen in the middle of that."""
    if path.name != checkpoints.OPTIMIZER or f"{checkpoints.PREFIX}{int(step):07d}" not in str(path):
        return save_file(tensors, path)
    if how == "LIMIT":  # the kernel lets no file grow larger than a megabyte
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        return save_file(tensors, path)
    path.write_bytes(b"half of a file")
    os.kill(os.getpid(), getattr(signal, how))
    return None

checkpoints.save_file = breaking
from hf_posswap.cli import main
main()
'''
"""Runs the command line and breaks it off while it writes a checkpoint. Arguments: how, and the checkpoint's step."""


def broken_by(how: str, step: int) -> tuple[str, ...]:
    """Return what to start instead of `PLAIN`: SIGKILL, SIGINT or LIMIT strikes while checkpoint `step` is written."""
    return (sys.executable, "-c", BREAKS, how, str(step))


def launched(configuration: str, *program: str) -> tuple[str, ...]:
    """Return what to start instead of `PLAIN`: `accelerate launch` with an example configuration."""
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0")
    return (*launch, "--config_file", str(CONFIGURATIONS / configuration), *(program or ("-m", "hf_posswap.cli")))


def short_text(folder: Path, characters: int = 30_000) -> Path:
    """Write the beginning of a book."""
    path = folder / "text.txt"
    path.write_text(BOOK.read_text(encoding="utf-8")[:characters], encoding="utf-8")
    return path


def arguments(output: Path, text: Path, *options: str, model: str = "demo:gpt2") -> list[str]:
    """Return the arguments of a short run that writes a checkpoint every other step."""
    run = ["--model", model, "--pos-scheme", "t5", "--train-file", str(text), "--output-dir", str(output)]
    return [
        "finetune",
        *run,
        "--length",
        "32",
        "--batch-size",
        "2",
        "--checkpoint-every",
        "2",
        "--no-calibrate",
        "--precision",
        "no",
        *options,
    ]


def start(
    command: Sequence[str], program: Sequence[str] = PLAIN, settings: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start a process with one thread, so that sums are taken in one order."""
    pipe = subprocess.PIPE
    session = {"start_new_session": True}  # so that what a launcher started can be ended with it
    return subprocess.Popen(
        [*program, *command], stdout=pipe, stderr=pipe, text=True, env=environment(settings), **session
    )


def environment(settings: dict[str, str] | None) -> dict[str, str]:
    """Return the environment of a process: one thread, no network, none of a launcher's own settings."""
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    outside = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return outside | alone | {"PYTHONPATH": str(REPOSITORY)} | (settings or {})


def ended(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    """Wait for a process and return what it printed."""
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(command: Sequence[str], *program: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a process to its end."""
    if program:
        return ended(start(command, program, settings))
    return warm.run([*PLAIN[1:], *command], env=environment(settings), timeout=PATIENCE)


def succeeded(command: Sequence[str], *program: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a process that must succeed."""
    result = run(command, *program, **settings)
    assert result.returncode == 0, result.stderr
    return result


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a file or folder is there."""
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, ended(process).stderr
        if time.monotonic() > until:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{path} does not appear: {ended(process).stderr}")
        time.sleep(0.005)


def result_of(folder: Path) -> dict[str, Any]:
    """Return a run's healing.json."""
    return json.loads((folder / "healing.json").read_text(encoding="utf-8"))


def history_of(folder: Path, *left_out: str) -> list[dict[str, Any]]:
    """Return the rows of a run's steps, without how fast they were."""
    rows = result_of(folder)["healing"]["history"]
    return [{key: value for key, value in row.items() if key not in ("tokens_per_second", *left_out)} for row in rows]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return a healed model's weights."""
    return load_file(folder / "model.safetensors")


def names_in(folder: Path) -> list[str]:
    """Return the names of what a folder holds, hidden ones too, that have to do with checkpoints."""
    return sorted(path.name for path in folder.iterdir() if "checkpoint-" in path.name)


def interrupted_copy(folder: Path, to: Path, step: int) -> Path:
    """Copy what a run had written by one of its checkpoints, as if it had been broken off after that."""
    to.mkdir(parents=True)
    name = f"checkpoint-{step:07d}"
    shutil.copytree(folder / name, to / name)
    return to

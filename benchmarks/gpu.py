"""Ten minutes on one GPU: what has only been tested or measured on a CPU, most valuable first.

    python -m benchmarks.gpu [--smollm2 MODEL] [--books FOLDER] [--only backends bench-gpt2] [--seconds 570]

It runs from the root of a checkout, without network (HF_HUB_OFFLINE=1) and without an installed hf_posswap. Each step
is a process with a time box;
what it writes goes to `--work-dir`, and the result files without models to `--output-dir`, with hardware and versions.
Run again, it passes over what is done and goes on with the rest. SmolLM2's weights are not in the checkout: without
`--smollm2` its step is left out. `--rehearse` runs every step on the CPU in tiny sizes, as a test of this script.

Needed beside torch and transformers: accelerate, peft, psutil, pyyaml, tqdm, typer, rich, pandas, pytest; for weights
in a GGUF file, gguf.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks import gpu_backends
from hf_posswap.benchmarking.settings import BenchmarkSettings
from hf_posswap.results.environment import collect_environment
from hf_posswap.results.files import write_text
from hf_posswap.results.writing import to_json
from hf_posswap.schemes import schemes
from hf_posswap.texts.sources import resolve_texts

ROOT = Path(__file__).resolve().parents[1]
RECORD = "gpu.json"
DONE, UNFINISHED, FAILED, LEFT_OUT = "done", "out of time", "failed", "left out"
INTERRUPTED = 130
GRACE = 8.0
"""Seconds that a process has to end after Ctrl-C, which commands of hf-posswap use to leave whole files."""
LEAST = 5.0
"""Seconds below which no further step is started."""
T5 = "t5:per_layer=true"
MEASURED = "demo:book/test"
CPU_HEALING = ROOT / "docs" / "results" / "study" / "models" / "gpt2-t5" / "healing.json"
"""The same healing on a CPU, which the step `heal-gpt2` is compared with."""


@dataclass(frozen=True)
class Sizes:
    """How large the steps are. `schemes` are those whose backends are compared (empty: all); `layers` None: all.

    `most` is the largest number of tokens that SmolLM2 is healed on, whatever the time that is left.
    """

    device: str
    schemes: tuple[str, ...]
    backends: tuple[str, ...]
    lengths: str
    layers: int | None
    repeats: int
    compared: int
    healing: str
    probe: str
    long_healing: str
    most: float


FULL = Sizes(
    device="cuda",
    schemes=(),
    backends=gpu_backends.BACKENDS,
    lengths="512,2048,8192",
    layers=None,
    repeats=5,
    compared=1000,
    # The command of the CPU's numbers but for the folder, in the CPU's precision.
    healing="--tokens 224000 --batch-size 16 --learning-rate 1e-3 --scheme-learning-rate 2e-2 --precision no",
    probe="--tokens 262144 --length 2048 --batch-size 8 --precision bf16",
    long_healing="--length 2048 --batch-size 8 --precision bf16 --checkpoint-every 100 "
    "--eval-lengths 512,2048,8192 --eval-tokens 32768",
    most=math.inf,
)
TINY = Sizes(
    device="cpu",
    schemes=("t5",),
    backends=("eager", "sdpa"),
    lengths="8",
    layers=1,
    repeats=1,
    compared=20,
    healing="--tokens 64 --length 16 --batch-size 2 --calibration-tokens 64 --precision no",
    probe="--tokens 64 --length 16 --batch-size 2 --no-calibrate --precision no",
    long_healing="--length 16 --batch-size 2 --calibration-tokens 64 --precision no --checkpoint-every 1 "
    "--eval-lengths 16 --eval-tokens 64",
    most=64,
)


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: its name, and that of its folder.
        box: seconds that it gets at most on a GPU; a rehearsal has no boxes but the time for everything.
        run: called in a process of its own with the step's folder; returns an exit status, 0 for success.
        missing: why the step cannot be run; "" if it can.
    """

    name: str
    box: float
    run: Callable[[Path], int]
    missing: str = ""


def hf_posswap(words: Sequence[str]) -> int:
    """Run a command of hf-posswap in this process and return its exit status."""
    from hf_posswap.cli import main

    sys.argv = ["hf-posswap", *words]
    try:
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    return 0


def run_tests(folder: Path) -> int:
    """Run the tests that need a GPU: the files that say so, as collecting all others takes minutes."""
    import pytest

    marked = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    # Without --strict-config: the options of pytest-timeout, which is not needed, are unknown where it is missing.
    lenient = ["-o", "addopts=--import-mode=importlib", f"--rootdir={ROOT}"]
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={folder / 'tests.xml'}", *lenient]
    return int(pytest.main([*options, *marked]))


def bench(model: str, sizes: Sizes) -> Callable[[Path], int]:
    """Return a step that measures a shape against stock attention and against a dense bias."""
    names = ",".join(sizes.schemes or ("alibi", T5, "rope", "none"))
    asked = f"--schemes {names} --dtypes bfloat16 --modes prefill,training,decode --lengths {sizes.lengths}"
    rest = f"--repeats {sizes.repeats} --device {sizes.device}" + (f" --layers {sizes.layers}" if sizes.layers else "")

    def run(folder: Path) -> int:
        words = ["bench", model, *asked.split(), *rest.split(), "--output-dir", str(folder)]
        # What matters most first; the second call goes on in the same file.
        return hf_posswap([*words, "--backends", "sdpa"]) or hf_posswap([*words, "--backends", "sdpa,dense-eager"])

    return run


def finetune(folder: Path, model: str, books: str, options: str) -> int:
    """Heal a model with T5's bias, or go on where that was interrupted."""
    words = ["--model", model, "--pos-scheme", T5, "--distill", "--resume"]
    for text in texts_of(books):
        words += ["--train-file", text]
    return hf_posswap(["finetune", *words, *options.split(), "--output-dir", str(folder)])


def texts_of(books: str) -> list[str]:
    """Return the texts of a folder but for the one that is measured on; any other name as it is."""
    if not Path(books).is_dir():
        return [books]
    measured = [source.path.read_bytes() for source in resolve_texts(MEASURED)]
    return [str(path) for path in sorted(Path(books).glob("*.txt")) if path.read_bytes() not in measured]


def heal_gpt2(sizes: Sizes) -> Callable[[Path], int]:
    """Return a step that heals the small GPT-2 as on the CPU, and compares the losses step by step."""

    def run(folder: Path) -> int:
        status = finetune(folder, "demo:gpt2", "demo:books/train", sizes.healing)
        if status == 0:
            here, there = (history(path) for path in (folder / "healing.json", CPU_HEALING))
            both = [{"step": n, "loss": here[n], "loss on a CPU": there[n]} for n in sorted(here.keys() & there.keys())]
            write_text(folder / "against-cpu.json", to_json({"kind": "losses", "rows": both}))
        return status

    return run


def history(path: Path) -> dict[int, float]:
    """Return the loss of each recorded step of a healing."""
    rows = json.loads(path.read_text(encoding="utf-8"))["healing"]["history"]
    return {row["step"]: row["loss"] for row in rows}


def heal_smollm2(sizes: Sizes, model: str, books: str, ends: float) -> Callable[[Path], int]:
    """Return a step that heals SmolLM2 and its control for as long as is left, at the speed that a short run had.

    Args:
        sizes: see `Sizes`.
        model: SmolLM2, as the option `--model` of `hf-posswap finetune` takes it.
        books: texts to learn from.
        ends: when the time is up, as by `time.monotonic`.
    """

    def run(folder: Path) -> int:
        chosen = folder / "tokens.json"
        if not chosen.exists():
            status = finetune(folder / "probe", model, books, sizes.probe)
            if status != 0:
                return status
            probe = json.loads((folder / "probe" / "healing.json").read_text(encoding="utf-8"))["healing"]
            speed = probe["history"][-1]["tokens_per_second"]
            # The model and its control, each of which takes half; a quarter is left for calibration and measuring.
            tokens = int(min(sizes.most, max(probe["tokens"], 0.75 * (ends - time.monotonic()) * speed / 2)))
            write_text(chosen, to_json({"tokens": tokens, "tokens_per_second": speed}))
        tokens = json.loads(chosen.read_text(encoding="utf-8"))["tokens"]
        options = f"--tokens {tokens} {sizes.long_healing} --eval-file {MEASURED} --control"
        return finetune(folder / "healed", model, books, options)

    return run


def describe_machine(folder: Path) -> int:
    """Write versions and hardware. In a process of its own: one that has used the GPU cannot start others on it."""
    write_text(folder / "environment.json", to_json(collect_environment(["python", "-m", "benchmarks.gpu"])))
    return 0


def steps(options: argparse.Namespace, ends: float) -> list[Step]:
    """Return the steps, most valuable first."""
    sizes = TINY if options.rehearse else FULL

    def compare(folder: Path) -> int:
        settings = BenchmarkSettings(
            model="smollm2",
            schemes=sizes.schemes or tuple(scheme.name for scheme in schemes),
            dtypes=("bfloat16", "float32"),
            lengths=(sizes.compared,),
            layers=sizes.layers or 2,
            device=sizes.device,
        )
        return gpu_backends.run(settings, folder, sizes.backends)

    missing = "" if options.smollm2 else "SmolLM2's weights are not in the checkout: --smollm2 names them"
    return [
        Step("environment", 30, describe_machine),
        Step("tests", 90, run_tests),
        Step("backends", 90, compare),
        Step("bench-smollm2", 90, bench("smollm2", sizes)),
        Step("bench-gpt2", 60, bench("gpt2", sizes)),
        Step("heal-gpt2", 60, heal_gpt2(sizes)),
        Step("smollm2", 570, heal_smollm2(sizes, options.smollm2, options.books, ends), missing),
    ]


def run_step(step: Step, folder: Path, ends: float, box: float) -> tuple[str, float]:
    """Run a step in a process of its own for `box` seconds at most; return how it ended, and its seconds.

    The process is forked, so that torch and transformers are imported once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_in_process, args=(step, folder))
    # What the libraries do around a fork swallows a Ctrl-C that comes then: it waits until the process has started.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        process.join(max(0.0, min(box, ends - GRACE - began)))
    finally:
        in_time = process.exitcode is not None
        if not in_time:
            _stop(process)
    seconds = round(time.monotonic() - began, 1)
    if not in_time:
        return UNFINISHED, seconds
    return (DONE if process.exitcode == 0 else FAILED), seconds


def _in_process(step: Step, folder: Path) -> None:
    """Run a step; what it prints goes into a file."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with (folder.parent / f"{step.name}.log").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = step.run(folder)
        sys.stdout.flush()
    os._exit(status)


def _stop(process: BaseProcess) -> None:
    assert process.pid is not None
    for how in (signal.SIGINT, signal.SIGKILL):
        if process.is_alive():
            try:
                os.killpg(process.pid, how)
            except ProcessLookupError:  # it has only just started, and leads no group yet
                os.kill(process.pid, how)
            process.join(GRACE)


def keep_results(folder: Path, target: Path) -> None:
    """Copy a step's result files: tables and JSON, no models."""
    kept = {"healing.json", "against-cpu.json", "tokens.json", "bench.json", "backends.json", "environment.json"}
    for path in sorted(folder.rglob("*")):
        if path.name in kept or path.suffix == ".xml":
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def last_lines(path: Path, count: int = 5) -> list[str]:
    """Return the last lines of a step's log."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [line for line in lines if line.strip()][-count:]


def run_all(options: argparse.Namespace) -> int:
    """Run what is not done yet, within the time; return the exit status: 1 if a step failed."""
    ends = time.monotonic() + options.seconds
    path = options.output_dir / RECORD
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": {}}
    if record.setdefault("rehearsal", options.rehearse) != options.rehearse:
        sys.exit(f"{path} is of a {'rehearsal' if record['rehearsal'] else 'run on a GPU'}: give another --output-dir.")
    for step in steps(options, ends):
        if options.only and step.name not in options.only:
            continue
        before = record["steps"].get(step.name, {})
        if before.get("outcome") == DONE:
            print(f"{step.name}: done already", flush=True)
            continue
        folder = options.work_dir / step.name
        if step.missing or ends - time.monotonic() < LEAST + GRACE:
            said = {"outcome": LEFT_OUT, "reason": step.missing or "no time was left"}
        else:
            outcome, seconds = run_step(step, folder, ends, options.seconds if options.rehearse else step.box)
            keep_results(folder, options.output_dir / step.name)
            said = {"outcome": outcome, "seconds": round(before.get("seconds", 0) + seconds, 1)}
            if outcome != DONE:
                said["last lines"] = last_lines(options.work_dir / f"{step.name}.log")
        record["steps"][step.name] = said
        write_text(path, to_json(record))
        print(f"{step.name}: {said['outcome']}{', ' + said['reason'] if 'reason' in said else ''}", flush=True)
    return int(any(said["outcome"] == FAILED for said in record["steps"].values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "docs" / "results" / "gpu")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "outputs" / "gpu", help="models, checkpoints and logs")
    parser.add_argument("--smollm2", default="", metavar="MODEL", help="folder or GGUF file with SmolLM2's weights")
    parser.add_argument("--books", default="demo:books/train", metavar="FOLDER", help="*.txt that SmolLM2 learns from")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="the steps to run; others are left for later")
    parser.add_argument("--seconds", type=float, default=570.0, help="time for everything")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in tiny sizes")
    options = parser.parse_args(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs of a shell's background start without it
    try:
        return run_all(options)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", flush=True)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

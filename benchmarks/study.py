"""The study behind docs/what-we-learnt.md: the commands of study_steps.py, run in order.

    PYTHONPATH=. python benchmarks/study.py --output-dir outputs/study [--only gpt2 …] [--dry-run | --copy-to DIR]

Each command writes its result files, with seed, versions, hardware and itself, into a folder of its own. A step whose
result is there, complete and made by the same command, is passed over; one that was interrupted goes on where it
stopped. So running the study again does what is missing, and a finished study runs nothing. On two cores the parts
take: gpt2 fifteen hours, llama four, bert two, mpnet three, speed one; the steps marked `cuda` run only where torch
sees a GPU.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study_steps import STUDIES, Step, all_steps
from hf_posswap.results.files import write_text
from hf_posswap.results.healing import thinned
from hf_posswap.results.writing import to_json

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Run = Callable[[Sequence[str]], int]


def run_command(words: Sequence[str]) -> int:
    """Run hf-posswap in a process of its own, and return its exit status."""
    return subprocess.run([sys.executable, "-m", "hf_posswap.cli", *words], check=False).returncode


def has_cuda() -> bool:
    """Return whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def run_study(steps: Iterable[Step], root: Path, run: Run = run_command, cuda: bool = False) -> int:
    """Run what is missing, and after anything new the report of all of it.

    Args:
        steps: what to run, in order.
        root: the study's folder.
        run: runs hf-posswap with the given words and returns its exit status.
        cuda: whether to run the steps that need a GPU.

    Returns:
        The exit status of the first step that failed, or 0.
    """
    ran = False
    for step in steps:
        if step.is_done(root):
            print(f"{step.folder}: done already", flush=True)
        elif step.cuda and not cuda:
            print(f"{step.folder}: left out, it needs a GPU and torch sees none", flush=True)
        else:
            words = step.words(root)
            print(f"{step.folder}: {shlex.join(['hf-posswap', *words])}", flush=True)
            status = run(words)
            if status != 0:
                print(f"{step.folder}: stopped with status {status}. The same command goes on from here.", flush=True)
                return status
            ran = True
    return run(["report", str(root)]) if ran else 0


def copy_results(steps: Iterable[Step], root: Path, target: Path) -> list[Path]:
    """Copy the JSON files of every step that has a result, but no tables and no models; return the copies."""
    copies = []
    for step in steps:
        result = root / step.folder / step.result
        names = [path.stem for path in result.parent.glob("*.csv")] if result.is_file() else []
        found = {result, *(result.with_name(f"{name}.json") for name in names)}
        for path in sorted(path for path in found if path.is_file()):
            copy = target / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = kept(json.loads(path.read_text(encoding="utf-8")))
            copies.append(write_text(copy, to_json(content)))
    return copies


def kept(content: dict[str, Any]) -> dict[str, Any]:
    """Return what the repository keeps of a result: of biases the distances 0, 1, 4, 16, …; of steps a few rows.

    The steps of results that hf_posswap writes today are few already; those of earlier versions are thinned here.
    Of every number it keeps `DIGITS` digits.
    """
    content = rounded(content)
    if content.get("kind") == "biases":
        few = [row for row in content["rows"] if row["distance"] is None or row["distance"] in KEPT_DISTANCES]
        return content | {"rows": few}
    for run in (content.get(name) for name in ("healing", "control", "refinement")):
        if isinstance(run, dict) and "history" in run:
            run["history"] = thinned(run["history"])
    for cell in content.get("cells", []):
        if "healing" in cell:
            steps = thinned([{"loss": loss} for loss in cell["healing"]["losses"]])
            cell["healing"]["losses"] = [step["loss"] for step in steps]
    return content


KEPT_DISTANCES = (0, *(4**power for power in range(16)))
"""The distances whose biases the repository keeps."""
DIGITS = 7
"""Significant digits of a number that the repository keeps: those of float32."""


def rounded(content: Any) -> Any:
    """Return a result with `DIGITS` digits of every number that is not whole."""
    if isinstance(content, float) and math.isfinite(content):
        return float(f"{content:.{DIGITS}g}")
    if isinstance(content, dict):
        return {name: rounded(value) for name, value in content.items()}
    return [rounded(value) for value in content] if isinstance(content, list) else content


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/study"))
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=STUDIES, help="parts of the study")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that would run, and run nothing")
    parser.add_argument("--copy-to", type=Path, metavar="DIR", help="run nothing; copy the result files that are there")
    options = parser.parse_args(arguments)
    steps = [step for step in all_steps() if step.study in options.only]
    if options.copy_to is not None:
        print("\n".join(map(str, copy_results(steps, options.output_dir, options.copy_to))))
        return 0
    if options.dry_run:
        for step in steps:
            note = "  # done already" if step.is_done(options.output_dir) else "  # needs a GPU" if step.cuda else ""
            print(shlex.join(["hf-posswap", *step.words(options.output_dir)]) + note)
        return 0
    try:
        return run_study(steps, options.output_dir, cuda=has_cuda())
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", flush=True)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

"""Run transformers' own model tests on swapped models, and on stock ones to compare with.

    python tests/transformers_suite/run.py --tests FOLDER [--family gpt2 …] [--scheme alibi …] [--match REGEX]

Prints what fails with a swapped model and passes with stock, and holds that against `differences.yaml`, which has each
known difference and its reason. A difference that is not there is an error, and so is an entry that does not differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
STOCK = "stock"
CELLS = {
    "gpt2": ("alibi", "t5", "rope", "none"),
    "llama": ("alibi", "t5", "rope", "none"),
    "bert": ("alibi", "t5", "rope"),
    "bert-decoder": ("alibi", "t5", "rope", "none"),
    "roberta": ("alibi", "t5", "rope"),
    "roberta-decoder": ("alibi", "t5", "rope", "none"),
}
"""Families (see `families.py`) and the schemes each is run with; encoders refuse `none`."""
SECONDS = 3600
"""After which a cell counts as hung."""

Outcomes = dict[str, dict[str, Any]]
"""Of each test of a cell, see `cell.py`."""


@dataclass(frozen=True)
class Difference:
    """A known difference, or, with the message as its reason, one that was found.

    Attributes:
        test: name of the test, and after a space of the part that fails; `*` stands for anything, here and below.
        family, scheme: where.
        reason: why it differs.
    """

    test: str
    family: str
    scheme: str
    reason: str

    def is_at(self, family: str, scheme: str) -> bool:
        """Return whether this is about a cell."""
        return _matches(family, self.family) and _matches(scheme, self.scheme)


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch(name, part.strip()) for part in pattern.split(","))


def known_differences() -> list[Difference]:
    """Return the list in `differences.yaml`."""
    entries = yaml.safe_load((HERE / "differences.yaml").read_text(encoding="utf-8")) or []
    return [Difference(e["test"], e.get("family", "*"), e.get("scheme", "*"), e["reason"]) for e in entries]


def run_cell(tests: Path, family: str, scheme: str, match: str) -> Outcomes:
    """Run the tests of a cell in a process of its own.

    Raises:
        RuntimeError: the process ended otherwise than by having run all tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "outcomes.json"
        command = [sys.executable, str(HERE / "cell.py"), str(tests), family, scheme, str(output), match]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS)
        if done.returncode or not output.exists():
            raise RuntimeError(f"{family} with {scheme} ended with {done.returncode}:\n{done.stdout[-3000:]}")
        return json.loads(output.read_text(encoding="utf-8"))


def found_differences(family: str, scheme: str, swapped: Outcomes, stock: Outcomes) -> list[Difference]:
    """Return what fails or is skipped with a swapped model, and is not with stock."""
    found = []
    for test, outcome in swapped.items():
        as_stock = stock[test]["failed"]
        if "" in as_stock:
            continue  # as a whole: nothing is known of its parts
        parts = outcome["failed"]
        if outcome["skipped"] and not stock[test]["skipped"]:
            parts = parts | {"skipped": outcome["skipped"]}
        for part, message in parts.items():
            if part not in as_stock:
                found.append(Difference(f"{test} {part}".strip(), family, scheme, message))
    return found


def unlike(found: list[Difference], known: list[Difference], cells: dict[tuple[str, str], Outcomes]) -> list[str]:
    """Return what found and known differences disagree about, a line each."""
    lines = [
        f"not in differences.yaml: {one.test} ({one.family}, {one.scheme}): {_last_line(one.reason)}"
        for one in found
        if not any(_matches(one.test, entry.test) and entry.is_at(one.family, one.scheme) for entry in known)
    ]
    for entry in known:
        for (family, scheme), outcomes in cells.items():
            ran = any(_matches(test, entry.test.partition(" ")[0]) for test in outcomes)
            differs = any(_matches(d.test, entry.test) and (d.family, d.scheme) == (family, scheme) for d in found)
            if entry.is_at(family, scheme) and ran and not differs:
                lines.append(f"no longer differs, take it off differences.yaml: {entry.test} ({family}, {scheme})")
    return lines


def _last_line(message: str) -> str:
    return message.strip().splitlines()[-1][:200]


def tally(outcomes: Outcomes) -> str:
    """Return how many tests passed, failed and were skipped."""
    failed = sum(bool(one["failed"]) for one in outcomes.values())
    skipped = sum(bool(one["skipped"]) and not one["failed"] for one in outcomes.values())
    return f"{len(outcomes) - failed - skipped:4} passed {failed:3} failed {skipped:4} skipped"


def main() -> int:
    """Run the cells asked for, print the table and return the exit status."""
    options = _options()
    cells = {family: [s for s in CELLS[family] if s in options.scheme] for family in options.family}
    asked = [(family, scheme) for family, schemes in cells.items() for scheme in (STOCK, *schemes)]
    with ThreadPoolExecutor(options.jobs) as pool:
        ran = list(pool.map(lambda cell: run_cell(options.tests, *cell, options.match), asked))
    outcomes = dict(zip(asked, ran, strict=True))
    found: list[Difference] = []
    for (family, scheme), outcome in outcomes.items():
        here = [] if scheme == STOCK else found_differences(family, scheme, outcome, outcomes[family, STOCK])
        seconds = sum(one["seconds"] for one in outcome.values())
        print(f"{family:16} {scheme:8} {tally(outcome)} {seconds:6.0f} s {len(here):4} unlike stock")
        found += here
    swapped = {cell: outcome for cell, outcome in outcomes.items() if cell[1] != STOCK}
    for one in sorted(found, key=lambda one: one.test):
        print(f"  {one.test} ({one.family}, {one.scheme}): {_last_line(one.reason)}")
        if options.tracebacks:
            print(one.reason)
    wrong = unlike(found, known_differences(), swapped)
    print("\n".join(wrong) or "As differences.yaml says.")
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=Path, required=True, help="the folder `tests` of transformers' sources")
    parser.add_argument("--family", nargs="*", choices=list(CELLS), default=list(CELLS))
    schemes = sorted({scheme for row in CELLS.values() for scheme in row})
    parser.add_argument("--scheme", nargs="*", choices=schemes, default=schemes)
    parser.add_argument("--match", default="", help="a regular expression to be found in the names of tests")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--tracebacks", action="store_true", help="print the traceback of each difference")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

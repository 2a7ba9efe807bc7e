"""transformers' own model tests, from the source distribution that `make test-neighbours` unpacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

pytestmark = [pytest.mark.needs("parameterized"), pytest.mark.slow(seconds=119)]

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "tests" / "transformers_suite" / "run.py"
TESTS = Path(sys.prefix) / "transformers" / "tests"
TESTED = f"transformers=={transformers.__version__}"
CELLS = ["--family", "gpt2", "bert", "--scheme", "t5"]
MATCH = "^(?!.*(eager_matches|bc_torch_dtype|overfit|compil))"
"""All but what takes most of the time."""


def test_swapped_models_pass_what_stock_models_pass() -> None:
    if TESTED not in (ROOT / "constraints.txt").read_text(encoding="utf-8"):
        pytest.skip(f"the list of differences is for the release that constraints.txt names, and this is {TESTED}")
    command = [sys.executable, str(SUITE), "--tests", str(TESTS), *CELLS, "--match", MATCH, "--jobs", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]

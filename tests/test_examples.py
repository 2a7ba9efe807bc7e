"""The examples run as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix.test_round_trip import ENVIRONMENT

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "equal logits: True" in done.stdout

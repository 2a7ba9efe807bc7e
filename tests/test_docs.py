"""The generated pages of the docs are up to date."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix.test_round_trip import ENVIRONMENT

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("script", ["generate.py", "figures.py", "learnt.py"])
def test_generated_pages_are_up_to_date(script: str) -> None:
    command = [sys.executable, str(ROOT / "docs" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr

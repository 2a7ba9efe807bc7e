"""The generated pages of the docs are up to date."""

import subprocess
import sys
from pathlib import Path

from tests.matrix.test_round_trip import ENVIRONMENT

ROOT = Path(__file__).parents[1]


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr

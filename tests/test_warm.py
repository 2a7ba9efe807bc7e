"""Processes forked for tests end, read and write as processes that were started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm

TELLS = """
import json, os, sys, torch
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), sys.stdin.read(), "transformers" in sys.modules]))
print("an error", file=sys.stderr)
sys.exit(3)
"""


def test_it_has_the_arguments_folder_environment_and_streams_it_is_given(tmp_path: Path) -> None:
    done = warm.run(["-c", TELLS, "--seed", "3"], env={"PATH": "/bin", "A": "b"}, cwd=tmp_path, stdin="text")
    assert (done.returncode, done.stderr) == (3, "an error\n")
    argv, folder, environment, stdin, imported = json.loads(done.stdout)
    assert argv == ["-c", "--seed", "3"]
    assert folder == str(tmp_path)
    assert {key: environment[key] for key in environment if not key.startswith("LC_")} == {"PATH": "/bin", "A": "b"}
    assert stdin == "text"
    assert not imported, "transformers reads its settings when it is imported"


def test_it_ends_by_the_signal_that_ends_the_program() -> None:
    done = warm.run(["-c", "import os; os.abort()"], env=os.environ)
    assert done.returncode == -signal.SIGABRT
    done = warm.run(["-m", "tests.no_such_module"], env=os.environ)
    assert done.returncode == 1
    assert "No module named" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and listed in /proc, on Linux only")
def test_it_is_killed_with_whoever_waits_for_it(tmp_path: Path) -> None:
    assert warm.run(["-c", "pass"], env=os.environ).returncode == 0  # the server is ready
    code = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(300)"
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["-c", code], env=os.environ, cwd=tmp_path, timeout=10)
    process = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 60
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < until, "it goes on"
        time.sleep(0.05)

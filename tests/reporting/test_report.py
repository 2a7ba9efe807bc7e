"""`hf-posswap report`: what it writes and how it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hf_posswap.commands import app
from hf_posswap.reporting import page
from tests.reporting import fixtures


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments])


def refused(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fixtures.write(tmp_path / "results" / "bench", "bench", fixtures.bench())
    return tmp_path / "results"


def test_a_page_that_admits_only_its_own_scripts_and_images_are_written(folder: Path) -> None:
    result = invoke(str(folder))
    assert result.exit_code == 0, result.output
    assert "report.html" in result.stdout
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        f"{name}-made-up.{suffix}" for name in ("memory", "time") for suffix in ("png", "svg")
    ]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text.partition("<script")[0])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert policy[1].count("sha256-") == 2
    assert "unsafe-inline" not in policy[1].partition("style-src")[0]


def test_the_page_can_go_elsewhere(folder: Path, tmp_path: Path) -> None:
    assert invoke(str(folder), "--output", str(tmp_path / "out" / "page.html")).exit_code == 0
    assert (tmp_path / "out" / "page.html").is_file()
    assert (tmp_path / "out" / "figures" / "time-made-up.svg").is_file()
    assert not (folder / "report.html").exists()


def test_wrong_input_is_refused(folder: Path, tmp_path: Path) -> None:
    assert "is no folder" in refused(str(tmp_path / "nothing"))
    assert "holds no results" in refused(str(fixtures.write(tmp_path / "empty", "config", {}).parent))
    assert "cannot write the report to '/dev/null/page.html'" in refused(str(folder), "--output", "/dev/null/page.html")
    (folder / "bench" / "half.json").write_text("{")
    assert "half.json': Expecting property name" in refused(str(folder))
    assert not (folder / "report.html").exists()


def test_what_is_left_out_is_said(folder: Path) -> None:
    fixtures.write(folder, "dreams", fixtures.bench() | {"kind": "dreams"})
    result = invoke(str(folder))
    assert result.exit_code == 0
    assert "its kind is 'dreams'" in result.stderr
    assert "its kind is &#x27;dreams&#x27;" in (folder / "report.html").read_text(encoding="utf-8")


def test_what_says_nothing_by_distance_is_said(folder: Path) -> None:
    biases = fixtures.biases()
    silent = [row for row in biases["rows"] if (row["scheme"], row["stage"]) == ("t5", "swapped")]
    assert silent
    path = fixtures.write(folder / "biases", "biases", biases | {"rows": silent})
    reason = "made-up: t5, swapped: zero at every distance, so no position until it is calibrated or trained."
    assert reason in " ".join(invoke(str(folder)).stderr.split())
    assert reason in (folder / "report.html").read_text(encoding="utf-8")
    assert reason in refused(str(path.parent))


def test_without_vega_the_way_out_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert 'pip install "hf_posswap[report]"' in refused(str(folder))
    assert not (folder / "report.html").exists()


def test_reading_results_needs_neither_torch_nor_vega() -> None:
    code = (
        "import sys, hf_posswap.reporting.catalogue, hf_posswap.commands.report\n"
        "found = {'torch', 'vl_convert', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_vega_is_packed_in_the_same_way_every_time() -> None:
    assert page.library() == page.library.__wrapped__(), "made anew"
    assert page._packed("source") == page._packed("source")

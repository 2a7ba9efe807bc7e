"""`hf-posswap evaluate`: what it prints and how it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hf_posswap.commands import app, evaluation_progress
from hf_posswap.commands.evaluation_progress import BarObserver, LineObserver
from hf_posswap.evaluation import run
from hf_posswap.evaluation.measuring import Part
from hf_posswap.texts.sources import resolve_texts

EVALUATE = ["evaluate", "demo:gpt2", "--text", "book.txt", "--tokens", "300"]


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where there is the beginning of a book, and a text too short for anything."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(resolve_texts("demo:book/test")[0].read()[:30_000], encoding="utf-8")
    Path("short.txt").write_text("A short text.", encoding="utf-8")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_it_prints_every_table_and_names_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    quick = ["--lengths", "70,300", "--depths", "0,1", "--trials", "2", "--output-dir", str(folder)]
    result = invoke(*EVALUATE, *quick)
    assert result.exit_code == 0, result.output
    for title in (
        "non-overlapping windows: demo:gpt2, stock",
        "ever longer context",
        "key tokens alone",
        "Loss by position",
        "chance 10%",
    ):
        assert title in result.stdout
    assert "— at length 300: longest position 256" in result.stdout
    assert all(str(folder / f"{name}.csv") in result.stdout for name in ("lengths", "positions", "passkey"))
    assert "(1/7) windows-70:" in result.stderr


def test_as_json_prints_the_files_and_nothing_else(tmp_path: Path) -> None:
    quick = ["--measure", "retrieval", "--lengths", "64,600", "--document-tokens", "128", "--most-documents", "12"]
    bert = ["evaluate", "demo:bert", "--text", "book.txt", *quick, "--output-dir"]
    result = invoke(*bert, str(tmp_path / "json"), "--json")
    printed = json.loads(result.stdout)
    assert printed == {"retrieval": json.loads((tmp_path / "json" / "retrieval.json").read_text(encoding="utf-8"))}
    assert "retrieval.csv" in result.stderr
    table = invoke(*bert, str(tmp_path / "table"))
    assert "Retrieval among 12 documents" in table.stdout
    assert "0.083" in table.stdout, "chance: one in twelve"
    assert "— at length 600: longest position 512" in table.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--lengths", "70", "--measure", "loss,speed"],
            "unknown value of measurements: 'speed'. Allowed: key-tokens, loss",
        ),
        (["--lengths", "70", "--measure", "retrieval"], "'retrieval' is for encoders"),
        (["--lengths", "70,many"], "'70,many' is no list of numbers"),
        (["--lengths", "70", "--depths", "0,deep"], "'0,deep' is no list of numbers"),
        (["--lengths", "70", "--depths", "0,2"], "Give numbers from 0 (beginning) to 1 (end)"),
        (["--lengths", "70", "--stage", "cooked"], "unknown value of stage: 'cooked'"),
        (["--lengths", "70", "--stage", "healed"], "is stock. Leave it out, or give --pos-scheme"),
        (["--lengths", "70", "--seed", "99999999999999999999999"], "within ±2147483647"),
        (["--lengths", "70", "--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--lengths", "70", "--most-documents", "0"], "most_documents is 0; it must be at least 1"),
        (["--lengths", "70", "--pos-scheme", "t6"], "unknown positional scheme 't6'"),
        (["--lengths", "70", "--measure", "positions", "--bins", "0"], "bins is 0; it must be at least 1"),
        (["--lengths", "70", "--output-dir", "/dev/null/x"], "cannot write to"),
        ([], "--lengths"),
    ],
)
def test_wrong_input_is_refused(options: list[str], message: str) -> None:
    result = invoke(*EVALUATE, *options)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not Path("outputs").exists()


def test_interrupted_it_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_evaluation", interrupt)
    result = invoke(*EVALUATE, "--lengths", "70")
    assert result.exit_code == 130
    assert "The same command goes on where it stopped" in result.stderr


def test_the_bar_ends_at_the_end_though_gaps_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    parts = [Part(name, 100, lambda reader: {}) for name in ("done", "read", "gap")]
    with evaluation_progress.evaluation_progress(is_main=True) as observer:
        assert isinstance(observer, BarObserver)
        observer.started(parts, parts[:1])
        for part, tokens in ((parts[1], 100), (parts[2], 0)):
            observer.part(part)
            observer.tokens(tokens)
            observer.part_done(part)
        (task,) = observer.progress.tasks
        assert (task.completed, task.total, task.description) == (300, 300, "gap")
    with evaluation_progress.evaluation_progress(is_main=False) as observer:
        assert type(observer) is LineObserver

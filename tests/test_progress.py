"""Progress of a comparison on stderr."""

from types import SimpleNamespace
from typing import Any

import pytest

from hf_posswap.commands.progress import BarObserver, LineObserver


@pytest.fixture
def prepared() -> Any:
    """What progress needs to know of a comparison, of which nothing runs here."""
    return SimpleNamespace(to_measure=["stock", "alibi"], tokens_per_scheme=100)


def test_lines_count_the_schemes(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    observer = LineObserver(prepared)
    for scheme in prepared.to_measure:
        observer.stage(scheme, "loading")
        observer.stage(scheme, "windows")
        observer.scheme_done(scheme, [])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" done in ")[0].strip() for line in lines] == [
        "(1/2) stock …",
        "stock",
        "(2/2) alibi …",
        "alibi",
    ]


def test_the_bar_moves_on_over_lengths_that_are_not_read(prepared: Any) -> None:
    with BarObserver(prepared) as observer:
        task = observer._progress.tasks[0]
        assert task.total == 200
        observer.stage("stock", "windows")
        assert task.description == "(1/2) stock: windows"
        observer.tokens(30)
        assert task.completed == 30
        observer.scheme_done("stock", [])
        assert task.completed == 100
        observer.scheme_done("refused", [])
        assert task.completed == 100
        observer.scheme_done("alibi", [])
    assert task.finished

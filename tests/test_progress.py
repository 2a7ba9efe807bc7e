"""Progress of a comparison on stderr."""

from types import SimpleNamespace
from typing import Any

import pytest

from hf_posswap.commands.progress import BarObserver, LineObserver
from hf_posswap.experiments.cells import Cell, Outcome

CELLS = [Cell("stock", "stock", 0), Cell("alibi", "swapped", 0), Cell("alibi", "healed", 0)]
STEP = {"step": 1, "loss": 2.0, "tokens_per_second": 100.0}


@pytest.fixture
def prepared() -> Any:
    """What progress needs to know of a comparison, of which nothing runs here."""
    return SimpleNamespace(number_of_seeds=1, work=lambda cell: 1000.0 if cell.stage == "healed" else 100.0)


def test_lines_count_the_points(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    observer = LineObserver(prepared)
    observer.planned(CELLS, CELLS[:1])
    observer.cell(CELLS[1])
    observer.stage("loading")
    observer.stage("measuring")
    observer.finished(Outcome(CELLS[1], "measured"))
    observer.cell(CELLS[2])
    observer.stage("healing")
    observer.started(8, 0)
    for step in range(1, 9):
        observer.step(STEP | {"step": step})
    observer.finished(Outcome(CELLS[2], "refused", "training has diverged"))
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "going on after 1 of 3 points that are measured already"
    assert lines[1] == "(2/3) alibi swapped …"
    assert lines[2].startswith("done in ")
    assert lines[3] == "(3/3) alibi healed …"
    assert [line.partition(":")[0] for line in lines[4:8]] == [f"step {step} of 8" for step in (2, 4, 6, 8)]
    assert lines[8] == "(3/3) alibi healed: refused: training has diverged"


def test_a_seed_is_named_if_there_are_several(prepared: Any) -> None:
    prepared.number_of_seeds = 2
    observer = LineObserver(prepared)
    observer.planned(CELLS, [])
    assert observer.place(CELLS[1]) == "(2/3) alibi swapped, seed 0"


def test_the_bar_covers_all_work_and_moves_on_over_what_is_not_read(prepared: Any) -> None:
    with BarObserver(prepared) as observer:
        task = observer.progress.tasks[0]
        observer.planned(CELLS, CELLS[:1])
        assert (task.total, task.completed) == (1200, 100)
        observer.cell(CELLS[1])
        observer.stage("measuring")
        assert task.description == "(2/3) alibi swapped: measuring"
        observer.worked(30)
        assert task.completed == 130
        observer.finished(Outcome(CELLS[1], "measured"))
        assert task.completed == 200
        observer.cell(CELLS[2])
        observer.stage("healing")
        observer.started(4, 0)
        observer.worked(400)
        observer.step(STEP)
        assert task.completed == 600
        assert task.fields["what"] == "step 1/4, loss 2.0000, 100 tokens/s"
        observer.worked(5000)
        assert task.completed == 1200, "what is done again on the way is not counted"
        observer.finished(Outcome(CELLS[2], "measured"))
    assert task.finished

"""A kind of measurement is its entry in the table, the rows of it, and a function that draws them: no more."""

from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting import catalogue
from hf_posswap.reporting.figures import Figure, makers
from hf_posswap.reporting.length_figure import lines_of
from hf_posswap.reporting.retrieval_figure import retrieval_figures
from hf_posswap.results.groups import Group, read_results
from hf_posswap.results.kinds import FAMILIES, KINDS, RETRIEVAL, Column, Kind
from hf_posswap.results.writing import make_result, write_result

NEEDLES = Kind("needles", "needles", "needles", (*RETRIEVAL.columns, Column("needle", str, identifies=True)), "needles")
WHAT: dict[str, Any] = {"model": "m", "seed": 0, "settings": {}, "texts": []}


def rows(needle: str, value: float | None) -> list[dict[str, Any]]:
    shared = {"model": "m", "scheme": "t5", "stage": "swapped", "seed": 0, "metric": "found", "needle": needle}
    measured = {"value": value, "low": None, "high": None, "queries": 3, "note": "" if value else "no needles here"}
    return [shared | measured | {"length": length} for length in (64, 128)]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, NEEDLES.name, NEEDLES)
    monkeypatch.setitem(makers, NEEDLES.family, retrieval_figures)
    monkeypatch.setattr(catalogue, "FAMILIES", (*FAMILIES, NEEDLES.family))


def test_it_is_written_read_and_drawn(tmp_path: Path) -> None:
    for needle in ("pin", "nail"):
        (tmp_path / needle).mkdir()
        write_result(make_result(NEEDLES, rows(needle, 0.5), **WHAT), tmp_path / needle)
    results = read_results(tmp_path)
    (group,) = results.groups
    assert isinstance(group, Group)
    assert len(group.rows) == 4, "the needle tells rows apart"
    assert [point.y for point in lines_of(group.rows, "value")["t5"]] == [0.5, 0.5]
    ((_, figures),) = catalogue.all_figures(results)
    assert [type(figure) for figure in figures] == [Figure]


def test_one_that_could_not_be_measured_is_told(tmp_path: Path) -> None:
    write_result(make_result(NEEDLES, rows("pin", None), **WHAT), tmp_path)
    results = read_results(tmp_path)
    assert catalogue.all_figures(results) == [("m", [])]
    assert catalogue.undrawn(results) == ["m: needles was not measured: no needles here"]

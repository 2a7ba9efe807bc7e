"""The files of a comparison, and the figure drawn from them alone."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting.comparison_figure import draw_comparison
from hf_posswap.reporting.comparison_files import read_comparison, remove_comparison, write_comparison
from hf_posswap.reporting.result_files import ResultFileError

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def row(scheme: str, stage: str, protocol: str, length: int, perplexity: float | None, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "scheme": scheme,
        "stage": stage,
        "seed": 0,
        "protocol": protocol,
        "length": length,
        "loss": None if perplexity is None else math.log(perplexity),
        "perplexity": perplexity,
        "loss_low": None if perplexity is None else math.log(perplexity) - 0.1,
        "loss_high": None if perplexity is None else math.log(perplexity) + 0.1,
        "tokens": 10,
        "windows": 2,
        "note": "longest position 64" if perplexity is None else "",
    } | more


def rows_of(curves: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        row(scheme, stage, protocol, length, None if scheme == "stock" and length > 64 else 20.0 + len(scheme))
        for scheme, stage in curves
        for protocol in ("windows", "same-targets")
        for length in (64, 128)
    ]


def whole(rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    facts = {"format_version": 1, "kind": "comparison", "model": "m", "train_length": 64, "seed": 0}
    return facts | {"texts": [{"name": "book.txt"}], "settings": settings, "rows": rows}


@pytest.fixture
def result() -> dict[str, Any]:
    rows = rows_of([("stock", "stock"), ("alibi", "swapped"), ("rope:yarn", "swapped")])
    rows += [
        row("none", "swapped", protocol, length, None)
        for protocol in ("windows", "same-targets")
        for length in (64, 128)
    ]
    return whole(rows)


@pytest.fixture
def staged() -> dict[str, Any]:
    curves = [("stock", "stock"), ("stock", "control"), ("rope", "swapped"), ("rope", "healed")]
    curves += [("t5", stage) for stage in ("swapped", "calibrated", "healed")]
    return whole(rows_of(curves), healing={"tokens": 1000, "distill": 1.0})


def test_three_files_are_written(result: dict[str, Any], tmp_path: Path) -> None:
    files = write_comparison(result, tmp_path)
    assert [file.name for file in files] == ["compare.csv", "compare.json", "compare.png"]
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert read_comparison(files[1]) == json.loads(files[1].read_text())


def test_csv_is_tidy_and_leaves_gaps_empty(result: dict[str, Any], tmp_path: Path) -> None:
    table = write_comparison(result, tmp_path)[0]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == len(result["rows"])
    assert "seconds" not in rows[0], "times would make two runs of one seed differ"
    gap = next(row for row in rows if row["scheme"] == "stock" and row["length"] == "128")
    assert (gap["loss"], gap["note"]) == ("", "longest position 64")


def test_files_are_removed_and_others_stay(result: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(result, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    remove_comparison(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("train_length", [None, 16, 64, 100, 8192])
def test_the_figure_is_drawn_wherever_the_train_length_lies(
    result: dict[str, Any], train_length: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "figure.svg"
    draw_comparison(result | {"train_length": train_length}, path)
    svg = path.read_text()
    assert svg.count("<svg") == 1


def test_a_single_length_can_be_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    result["rows"] = [row for row in result["rows"] if row["length"] == 64]
    draw_comparison(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_stages_are_drawn_as_lines_and_stage_by_stage(staged: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    draw_comparison(staged, path)
    svg = path.read_text()
    assert "Stage by stage, 64 tokens" in svg
    assert all(f"<!-- {name} -->" in svg for name in ("rope, healed", "t5, healed", "calibrated"))
    assert "<!-- t5, swapped -->" not in svg, "earlier stages are not in the legend"
    assert "Healed on: 1,000 tokens of other texts" in svg


def test_a_comparison_without_stages_has_no_panel_of_them(result: dict[str, Any], tmp_path: Path) -> None:
    draw_comparison(result, tmp_path / "figure.svg")
    assert "Stage by stage" not in (tmp_path / "figure.svg").read_text()


def test_comparisons_from_before_there_were_stages_are_read() -> None:
    result = read_comparison(RESULTS / "compare-gpt2.json")
    assert {(row["scheme"], row["stage"]) for row in result["rows"]} >= {("stock", "stock"), ("alibi", "swapped")}
    assert {row["seed"] for row in result["rows"]} == {0}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": 3}', "nonsense"])
def test_a_file_that_is_no_comparison_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "compare.json"
    path.write_text(content)
    with pytest.raises(ResultFileError, match=r"compare\.json"):
        read_comparison(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultFileError, match=r"cannot read .*none\.json"):
        read_comparison(tmp_path / "none.json")

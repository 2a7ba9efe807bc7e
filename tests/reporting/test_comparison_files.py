"""The files of a comparison, and the figure drawn from them alone."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting.comparison_figure import draw_comparison
from hf_posswap.reporting.comparison_files import read_comparison, to_csv, to_json, write_comparison
from hf_posswap.reporting.files import OutputError


def row(scheme: str, protocol: str, length: int, perplexity: float | None, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "scheme": scheme,
        "protocol": protocol,
        "length": length,
        "loss": None if perplexity is None else 3.0,
        "perplexity": perplexity,
        "loss_low": None if perplexity is None else 2.9,
        "loss_high": None if perplexity is None else 3.1,
        "tokens": 10,
        "windows": 2,
        "note": "longest position 64" if perplexity is None else "",
        "seconds": 1.0,
    } | more


@pytest.fixture
def result() -> dict[str, Any]:
    rows = [
        row(scheme, protocol, length, None if scheme == "stock" and length > 64 else 20.0 + len(scheme))
        for scheme in ("stock", "alibi", "rope:yarn")
        for protocol in ("windows", "same-targets")
        for length in (64, 128)
    ]
    rows += [row("none", protocol, length, None) for protocol in ("windows", "same-targets") for length in (64, 128)]
    return {"model": "m", "train_length": 64, "seed": 0, "texts": [{"name": "book.txt"}], "rows": rows}


def test_three_files_are_written(result: dict[str, Any], tmp_path: Path) -> None:
    files = write_comparison(result, tmp_path)
    assert [file.name for file in files] == ["compare.csv", "compare.json", "compare.png"]
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert read_comparison(files[1]) == json.loads(files[1].read_text())


def test_csv_is_tidy_and_leaves_gaps_empty(result: dict[str, Any]) -> None:
    rows = list(csv.DictReader(to_csv(result["rows"]).splitlines()))
    assert len(rows) == len(result["rows"])
    assert "seconds" not in rows[0], "times would make two runs of one seed differ"
    gap = next(row for row in rows if row["scheme"] == "stock" and row["length"] == "128")
    assert (gap["loss"], gap["note"]) == ("", "longest position 64")


def test_json_has_no_infinity(result: dict[str, Any]) -> None:
    result["rows"][0]["perplexity"] = float("inf")
    assert json.loads(to_json(result), parse_constant=pytest.fail)["rows"][0]["perplexity"] is None


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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": 3}', "nonsense"])
def test_a_file_that_is_no_comparison_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "compare.json"
    path.write_text(content)
    with pytest.raises(OutputError, match=r"compare\.json"):
        read_comparison(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot read the comparison .*none\.json"):
        read_comparison(tmp_path / "none.json")

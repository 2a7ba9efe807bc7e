"""The figure of a comparison, drawn from its result file alone."""

import math
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting.comparison_figure import comparison_figure, draw_comparison
from hf_posswap.results.groups import as_group
from hf_posswap.results.reading import result_file

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


@pytest.mark.parametrize("train_length", [None, 16, 64, 100, 8192])
def test_the_figure_is_drawn_wherever_the_train_length_lies(
    result: dict[str, Any], train_length: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "figure.svg"
    draw_comparison(result_file(result | {"train_length": train_length}), path)
    svg = path.read_text()
    assert svg.count("<svg") == 1


def test_a_single_length_can_be_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    result["rows"] = [row for row in result["rows"] if row["length"] == 64]
    draw_comparison(result_file(result), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_stages_are_drawn_as_lines_and_stage_by_stage(staged: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    draw_comparison(result_file(staged), path)
    svg = path.read_text()
    assert "Stage by stage, 64 tokens" in svg
    assert all(f">{name}</text>" in svg for name in ("rope, healed", "t5, healed", "calibrated"))
    assert ">t5, swapped</text>" not in svg, "earlier stages are not in the legend"
    assert "Healed on: 1,000 tokens of other texts" in svg


def test_a_comparison_without_stages_has_no_panel_of_them(result: dict[str, Any], tmp_path: Path) -> None:
    draw_comparison(result_file(result), tmp_path / "figure.svg")
    assert "Stage by stage" not in (tmp_path / "figure.svg").read_text()


def test_a_scheme_is_drawn_at_its_last_stage_with_any_number(staged: dict[str, Any]) -> None:
    gaps = [
        row | {"loss": None} if (row["scheme"], row["stage"]) == ("t5", "healed") else row for row in staged["rows"]
    ]
    panel, *_ = comparison_figure(as_group(result_file(staged | {"rows": gaps}))).panels
    assert [series.label for series in panel.series][2:] == ["rope, healed", "t5, calibrated"]

"""healing.json in a report: every stage it measured, as losses by length or as agreement."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.reporting.figures import LinePanel
from hf_posswap.reporting.lines import in_order
from hf_posswap.reporting.quantities import COSINE, quantity_of
from hf_posswap.results.groups import read_results
from hf_posswap.results.healing import thinned
from hf_posswap.results.reading import ResultsError
from hf_posswap.training.loop import HealingReport

STAGES = ("stock", "swapped", "calibrated", "healed")


def healing(evaluation: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "format_version": 1,
        "model": "demo:bert",
        "scheme": "rope",
        "pos_scheme": {"name": "rope", "base_model": "demo:bert"},
        "train_length": 128,
        "options": {"seed": 3, "distill": 1.0},
        "healing": {"tokens": 1000, "history": []},
        "evaluation": evaluation,
        "evaluation_texts": [{"name": "test.txt", "sha256": "0" * 64}],
    } | more


def cosines(value: float) -> list[dict[str, Any]]:
    shared = {"lowest": 0.1, "texts": 4, "note": ""}
    gap = {"length": 4096, "cosine": None, "lowest": None, "texts": 0, "note": "the stock model reads 512 tokens"}
    return [*({"length": length, "cosine": value - length / 1000} | shared for length in (16, 32)), gap]


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).mkdir()
    (folder / name / "healing.json").write_text(json.dumps(content), encoding="utf-8")


def test_what_healing_measured_is_drawn_stage_by_stage_as_cosines(tmp_path: Path) -> None:
    values = dict(zip(STAGES, (1.0, 0.5, 0.7, 0.9), strict=True))
    write(tmp_path, "rope", healing({stage: cosines(value) for stage, value in values.items()}))
    write(tmp_path, "alibi", healing({"healed": cosines(0.8)}, scheme="alibi"))
    results = read_results(tmp_path)
    (group,) = results.groups
    assert (group.family, group.model, group.train_length) == ("agreement", "demo:bert", 128)
    assert {row["seed"] for row in group.rows} == {3}
    ((_, figures),) = all_figures(results)
    stages, *by_length = figures
    panel = stages.panels[-1]
    assert isinstance(panel, LinePanel)
    assert (panel.y.title, panel.y.scale) == ("cosine", "linear")
    lines = {series.key: series.y for series in panel.series}
    assert lines["rope"] == pytest.approx((0.468, 0.668, 0.868))
    assert lines["alibi"] == (None, None, pytest.approx(0.768))
    assert [figure.variant for figure in by_length] == ["swapped", "calibrated", "healed"]
    assert any("the stock model reads 512 tokens" in gap for figure in by_length for gap in figure.gaps)
    assert ("agreement", "32", "rope", "healed", "0.868") in stages.table.rows


def test_masked_losses_of_healing_stand_beside_those_of_a_comparison(tmp_path: Path) -> None:
    rows = [{"protocol": "masked", "length": 32, "loss": 2.0, "loss_low": 1.9, "loss_high": 2.1, "note": ""}]
    write(tmp_path, "out", healing({"stock": rows, "healed": rows, "control": rows}))
    results = read_results(tmp_path)
    assert results.groups[0].family == "lengths"
    assert results.keys() == ["stock", "control", "rope"]
    assert quantity_of(results.groups[0].rows).subject == "Masked-token perplexity"


def test_a_healing_without_measurements_is_named(tmp_path: Path) -> None:
    write(tmp_path, "out", healing({}))
    with pytest.raises(ResultsError, match=r"healing.json' has no stage that was measured: .*--eval-file"):
        read_results(tmp_path)


def test_where_less_loss_is_more_the_ends_of_an_interval_change_places() -> None:
    assert in_order(COSINE.shown(0.1), COSINE.shown(0.3)) == (pytest.approx(0.7), pytest.approx(0.9))
    assert in_order(None, 1.0) == (None, 1.0)


def steps(number: int) -> list[dict[str, Any]]:
    return [
        {"step": n, "tokens": 16 * n, "loss": 10.0 - n / number, "learning_rate": 1 / n, "gradient_norm": n % 2}
        for n in range(1, number + 1)
    ]


@pytest.mark.parametrize("number", [0, 1, 24, 25])
def test_a_short_history_is_kept_whole(number: int) -> None:
    assert thinned(steps(number)) == steps(number)


@pytest.mark.parametrize("number", [26, 27, 100, 1953])
def test_a_long_history_is_kept_in_few_rows_that_stand_for_all_steps(number: int) -> None:
    whole, kept = steps(number), thinned(steps(number))
    assert len(kept) == 25
    assert [kept[0], kept[-1]] == [whole[0], whole[-1]]
    ends = [row["step"] for row in kept]
    assert ends == sorted(set(ends))
    sizes = [later - before for before, later in itertools.pairwise(ends[:-1])]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == number - 2
    for size, row in zip(sizes, kept[1:-1], strict=True):
        stretch = whole[row["step"] - size : row["step"]]
        assert row["loss"] == pytest.approx(sum(step["loss"] for step in stretch) / size)
        assert (row["tokens"], row["learning_rate"]) == (stretch[-1]["tokens"], stretch[-1]["learning_rate"])


def test_each_stage_keeps_its_first_and_last_step() -> None:
    rows = [row | {"stage": "attention" if row["step"] <= 30 else "outputs"} for row in steps(200)]
    kept = thinned(rows)
    assert len(kept) <= 25
    ends = {row["step"]: row["stage"] for row in kept}
    assert {1: "attention", 30: "attention", 31: "outputs", 200: "outputs"}.items() <= ends.items()
    assert all(stage == ("attention" if step <= 30 else "outputs") for step, stage in ends.items())


def test_a_healing_report_is_written_with_few_rows_and_holds_all_steps() -> None:
    report = HealingReport(
        tokens=1600,
        steps=100,
        length=16,
        parameters=7,
        supervision=["logits=1"],
        learning_rate=3e-4,
        start=None,
        costs={},
        history=steps(100),
    )
    assert report.to_dict()["history"] == thinned(steps(100))
    assert len(report.history) == 100

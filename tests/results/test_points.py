"""From rows to points and curves."""

import math
from typing import Any

import pytest

from hf_posswap.results.points import Point, curves_of, points


def row(scheme: str, stage: str, length: int, loss: float | None, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "scheme": scheme,
        "stage": stage,
        "seed": seed,
        "protocol": "windows",
        "length": length,
        "loss": loss,
        "perplexity": None if loss is None or loss > 700 else math.exp(loss),
        "loss_low": None if loss is None else loss - 0.1,
        "loss_high": None if loss is None else loss + 0.1,
        "note": "longest position 64" if loss is None else "",
    } | more


def test_one_seed_has_no_ends() -> None:
    (curve,) = curves_of([row("t5", "swapped", 64, 3.0), row("t5", "swapped", 128, None)], "windows")
    assert curve.points == (Point(64, 3.0, seeds=1), Point(128, None, note="longest position 64"))


def test_several_seeds_give_the_mean_loss_and_their_ends() -> None:
    (curve,) = curves_of([row("t5", "healed", 64, loss, seed) for seed, loss in enumerate((3.0, 3.2, 3.7))], "windows")
    assert curve.points == (Point(64, pytest.approx(3.3), 3.0, 3.7, 3),)


def test_intervals_of_several_seeds_are_merged() -> None:
    rows = [row("t5", "healed", 64, loss, seed) for seed, loss in enumerate((3.0, 3.2))]
    (point,) = points(rows, "loss", "loss_low", "loss_high")
    assert (point.low, point.high) == (pytest.approx(2.9), pytest.approx(3.3))


def test_curves_come_scheme_by_scheme_and_stage_by_stage() -> None:
    rows = [
        row("stock", "stock", 64, 2.0),
        row("t5", "healed", 64, 2.1),
        row("t5", "swapped", 64, 4.0),
        row("stock", "control", 64, 2.1),
        row("rope", "swapped", 64, 4.0),
        row("rope", "healed", 64, None),
        row("t5", "swapped", 64, 9.0, protocol="same-targets"),
    ]
    assert [(curve.scheme, curve.stage) for curve in curves_of(rows, "windows")] == [
        ("stock", "stock"),
        ("stock", "control"),
        ("t5", "swapped"),
        ("t5", "healed"),
        ("rope", "swapped"),
        ("rope", "healed"),
    ]


def test_a_stage_of_tomorrow_comes_last() -> None:
    rows = [row("t5", stage, 64, 2.0) for stage in ("merged", "healed", "swapped")]
    assert [curve.stage for curve in curves_of(rows, "windows")] == ["swapped", "healed", "merged"]

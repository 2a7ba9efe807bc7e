"""From tidy rows to curves."""

import math
from typing import Any

import pytest

from hf_posswap.reporting.comparison_curves import curves_of, final_curves


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


def test_one_seed_has_no_spread() -> None:
    (curve,) = curves_of([row("t5", "swapped", 64, 3.0), row("t5", "swapped", 128, None)], "windows")
    read, gap = curve.points
    assert read.value == pytest.approx(math.exp(3.0))
    assert read.spread is None
    assert (gap.value, gap.note) == (None, "longest position 64")
    assert curve.measured == [read]


def test_several_seeds_give_the_mean_loss_and_half_their_range() -> None:
    (curve,) = curves_of([row("t5", "healed", 64, loss, seed) for seed, loss in enumerate((3.0, 3.2, 3.7))], "windows")
    (point,) = curve.points
    assert point.value == pytest.approx(math.exp(3.3))
    assert point.spread == pytest.approx((math.exp(3.7) - math.exp(3.0)) / 2)


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
    curves = curves_of(rows, "windows")
    assert [(curve.scheme, curve.stage) for curve in curves] == [
        ("stock", "stock"),
        ("stock", "control"),
        ("t5", "swapped"),
        ("t5", "healed"),
        ("rope", "swapped"),
        ("rope", "healed"),
    ]
    final = {(curve.scheme, curve.stage) for curve in final_curves(curves)}
    assert final == {("stock", "stock"), ("stock", "control"), ("t5", "healed"), ("rope", "swapped")}


def test_a_loss_beyond_a_float_is_infinite_perplexity() -> None:
    (curve,) = curves_of([row("t5", "swapped", 64, 800.0)], "windows")
    assert curve.points[0].value == math.inf

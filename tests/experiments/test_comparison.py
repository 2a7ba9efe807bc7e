"""Comparing schemes on one model: what comes out."""

import math
from typing import Any

import pytest
import torch

from hf_posswap import is_swapped
from hf_posswap.errors import UnsupportedError
from hf_posswap.experiments import comparison, stages
from hf_posswap.experiments.comparison import run
from hf_posswap.experiments.preparation import prepare
from hf_posswap.training import HealingError
from hf_posswap.training.optimization import scheme_parameters
from tests.experiments.helpers import Make, Recorder, numbers, statuses


def test_stock_and_every_scheme_are_measured_by_every_protocol(changed: Make) -> None:
    recorder = Recorder()
    result = run(prepare(changed()), recorder)
    rows = {(row["scheme"], row["stage"], row["protocol"], row["length"]): row for row in result["rows"]}
    assert len(rows) == 3 * 3 * 3
    assert result["kind"] == "comparison"
    assert result["train_length"] == 256
    assert result["complete"]
    assert rows["stock", "stock", "windows", 128]["loss"] < rows["alibi", "swapped", "windows", 128]["loss"]
    assert rows["stock", "stock", "windows", 512]["note"] == "longest position 256"
    assert rows["alibi", "swapped", "same-targets", 512]["loss"] is not None
    assert [str(outcome.cell) for outcome in recorder.outcomes] == ["stock", "alibi swapped", "t5 swapped"]
    assert recorder.activities[:2] == [("stock", "stock", "loading"), ("stock", "stock", "measuring")]
    assert result["seed"] == 0
    assert result["environment"]["versions"]["torch"]
    assert len(result["texts"][0]["sha256"]) == 64


def test_every_stage_is_measured_beside_stock_and_its_control(healed: Make) -> None:
    recorder = Recorder()
    prepared = prepare(healed())
    result = run(prepared, recorder)
    assert statuses(result) == {
        ("stock", "stock", 0): "measured",
        ("stock", "control", 0): "measured",
        ("t5:per_layer=true", "swapped", 0): "measured",
        ("t5:per_layer=true", "calibrated", 0): "measured",
        ("t5:per_layer=true", "healed", 0): "measured",
        ("alibi", "swapped", 0): "measured",
        ("alibi", "calibrated", 0): "absent",
        ("alibi", "healed", 0): "measured",
    }
    plain = [row for row in result["rows"] if row["protocol"] != "key-tokens"]  # too few tokens for a key token
    losses = {(row["scheme"], row["stage"]): row["loss"] for row in plain if row["length"] == 64}
    t5 = {stage: losses["t5:per_layer=true", stage] for stage in ("swapped", "calibrated", "healed")}
    assert losses["stock", "stock"] < t5["calibrated"] < t5["swapped"]
    assert len(set(losses.values())) == 7, "every stage is another model"
    assert ("alibi", "calibrated") not in losses
    reason = next(cell["reason"] for cell in result["cells"] if cell["status"] == "absent")
    assert "'alibi' has no parameters that calibration can fit" in reason
    beyond = {(row["scheme"], row["stage"]): row for row in plain if row["length"] == 300}
    assert beyond["stock", "control"]["note"] == "longest position 256"
    assert beyond["alibi", "healed"]["loss"] is not None
    assert recorder.steps == [1, 2, 3] * 3
    healings = [cell["healing"] for cell in result["cells"] if "healing" in cell]
    assert [len(healing["losses"]) for healing in healings] == [3, 3, 3]
    assert result["training_texts"][0]["name"] == "train.txt"
    # All the work that was foreseen, but for texts past stock's longest position.
    measured = [cell for cell in recorder.cells if statuses(result)[cell.scheme, cell.stage, cell.seed] == "measured"]
    unread = 2 * prepared.measure.tokens
    assert sum(map(prepared.work, measured)) - unread <= recorder.work <= sum(map(prepared.work, measured))


def test_healing_starts_from_the_swap_if_nothing_is_calibrated(healed: Make) -> None:
    result = run(prepare(healed(schemes=("t5:per_layer=true",), calibrate=False, control=False)))
    assert [cell["stage"] for cell in result["cells"]] == ["stock", "swapped", "healed"]
    assert result["cells"][2]["healing"]["losses"][0] > 0.5, "the first step sees a model that has lost its positions"


def test_seeds_change_what_is_random_and_nothing_else(healed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = stages.swap

    def swap_starting_shaw_at_random(model: Any, scheme: Any, **how: Any) -> Any:
        swapped = swap(model, scheme, **how)
        if scheme.name == "shaw":
            for weight in scheme_parameters(swapped).values():
                torch.nn.init.normal_(weight, std=0.02)
        return swapped

    monkeypatch.setattr(stages, "swap", swap_starting_shaw_at_random)
    schemes = ("t5:per_layer=true", "shaw")
    settings = healed(schemes=schemes, lengths=(64,), calibrate=False, seed=3, seeds=2, control=False)
    result = run(prepare(settings))
    found = statuses(result)
    assert found["stock", "stock", 3] == "measured"
    assert ("stock", "stock", 4) not in found
    assert found["t5:per_layer=true", "swapped", 4] == "same"
    assert found["shaw", "swapped", 4] == "measured"
    plain = [row for row in result["rows"] if row["protocol"] != "key-tokens"]  # too few tokens for a key token
    losses = {(row["scheme"], row["stage"], row["seed"]): row["loss"] for row in plain}
    assert losses["shaw", "swapped", 3] != losses["shaw", "swapped", 4]
    for scheme in schemes:
        assert losses[scheme, "healed", 3] != losses[scheme, "healed", 4]


def test_the_same_seed_gives_the_same_numbers(healed: Make) -> None:
    settings = healed(schemes=("shaw",), lengths=(64,), control=False)
    first, second = (run(prepare(settings)) for _ in range(2))
    assert numbers(first) == numbers(second)


def test_a_swap_that_is_refused_becomes_stated_rows(healed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: object, scheme: object, **how: object) -> object:
        raise UnsupportedError("not with this model")

    monkeypatch.setattr(stages, "swap", refuse)
    result = run(prepare(healed(schemes=("alibi",), lengths=(64,), control=False)))
    refused = [row for row in result["rows"] if row["scheme"] == "alibi"]
    assert [(row["stage"], row["note"]) for row in refused] == [("swapped", "not with this model")] * 3
    assert [row["loss"] for row in refused] == [None] * 3
    found = statuses(result)
    assert [found["alibi", stage, 0] for stage in ("swapped", "calibrated", "healed")] == [
        "refused",
        "absent",
        "absent",
    ]


def test_a_scheme_that_cannot_run_before_calibration_has_no_stage_before(
    healed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(model: Any) -> str | None:
        own = {name: weight for name, weight in scheme_parameters(model).items() if "pos_scheme" in name}
        waits = is_swapped(model) and not any(weight.any() for weight in own.values())
        return "calibrate first" if waits else None

    monkeypatch.setattr(comparison, "unfitted_reason", reason)
    settings = healed(schemes=("t5",), lengths=(64,), control=False, healing=None)
    result = run(prepare(settings))
    found = statuses(result)
    assert [found["t5", stage, 0] for stage in ("swapped", "calibrated")] == ["absent", "measured"]
    assert [cell["reason"] for cell in result["cells"] if cell["status"] == "absent"] == ["calibrate first"]
    assert all(row["loss"] is not None for row in result["rows"])


def test_healing_that_diverges_becomes_stated_rows_and_the_rest_goes_on(
    healed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    heal = stages.heal

    def diverging(model: Any, *arguments: Any, **options: Any) -> Any:
        if type(model).__name__.startswith("PosSwap") and model.config.pos_scheme["name"] == "t5":
            raise HealingError("training has diverged")
        return heal(model, *arguments, **options)

    monkeypatch.setattr(stages, "heal", diverging)
    result = run(prepare(healed(lengths=(64,), calibrate=False)))
    found = statuses(result)
    assert found["t5:per_layer=true", "healed", 0] == "refused"
    assert found["alibi", "healed", 0] == "measured"
    notes = {row["note"] for row in result["rows"] if row["stage"] == "healed" and row["loss"] is None}
    assert notes == {"training has diverged"}


def test_a_bounded_scheme_past_its_limit_is_a_stated_gap_at_every_stage(healed: Make) -> None:
    settings = healed(schemes=("learned:length=280",), control=False, calibrate=False)
    result = run(prepare(settings))
    gaps = [row for row in result["rows"] if row["scheme"] != "stock" and row["length"] == 300]
    assert {row["stage"] for row in gaps} == {"swapped", "healed"}
    assert all(row["note"] == "longest position 280" and row["loss"] is None for row in gaps)
    swapped = [row for row in result["rows"] if row["scheme"] != "stock" and row["length"] == 64]
    read = [row["loss"] for row in swapped if row["protocol"] != "key-tokens"]
    assert all(map(math.isfinite, read))
    assert len(read) == 4

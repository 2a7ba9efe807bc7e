"""Healing computes in bfloat16 by default only where that is fast, and says so."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from hf_posswap.commands.precision import begun_precision, decide_precision
from hf_posswap.experiments.settings import recipe
from hf_posswap.training import distribution, precision
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.precision import SlowPrecisionWarning, fast_precision, warn_if_slow


@pytest.fixture(params=["bf16", "no"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the device is fast at, one after the other."""
    monkeypatch.setattr(precision, "fast_precision", lambda device: request.param)
    return str(request.param)


def test_a_cpu_is_asked_for_its_instructions() -> None:
    assert fast_precision("cpu") == ("bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no")
    assert fast_precision("meta") == "no"
    assert recipe(8).precision in ("bf16", "no")


def test_a_choice_follows_the_device_and_is_said_in_a_line(fast: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert decide_precision(None, "cpu") == fast
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert {"bf16": "in bfloat16", "no": "in float32"}[fast] in said


@pytest.mark.parametrize("given", ["bf16", "no"])
def test_what_is_given_is_obeyed_and_noted_where_it_is_slow(
    given: str, fast: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decide_precision(given, "cpu", begun="no") == given
    assert capsys.readouterr().err.count("\n") == int((given, fast) == ("bf16", "no"))


def test_a_run_goes_on_in_the_precision_it_began_with(fast: str, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"run": {"options": HealingOptions(steps=1, precision="bf16").identity()}}))
    assert begun_precision(state, ("run", "options")) == "bf16"
    assert decide_precision(None, "cpu", begun_precision(state, ("run", "options"))) == "bf16"


@pytest.mark.parametrize("content", [None, "half of {", "{}", '{"run": {"options": null}}', '{"run": []}'])
def test_an_earlier_run_that_cannot_be_read_says_nothing(content: str | None, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    if content is not None:
        state.write_text(content)
    assert begun_precision(state, ("run", "options")) is None
    assert begun_precision(None, ()) is None


def test_an_unknown_precision_is_left_to_the_options_to_refuse(fast: str) -> None:
    with pytest.raises(HealingError, match="unknown value of precision: 'fp16'.*Allowed: bf16, no"):
        # What was typed is no Literal; that it reaches the options unchecked is the point.
        HealingOptions(steps=1, precision=decide_precision("fp16", "cpu"))  # type: ignore[arg-type]


def test_the_library_warns_where_bfloat16_is_slow(fast: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_slow("bf16", "cpu")
        warn_if_slow("no", "cpu")
    assert [warning.category for warning in caught] == [SlowPrecisionWarning] * (fast == "no")


def test_accelerate_on_a_cpu_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert distribution.expected_device() == "cpu"

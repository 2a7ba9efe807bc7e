"""The definitions of the stages, and the way of a model through them."""

import dataclasses
from typing import Any

import pytest

from hf_posswap.experiments import stages
from hf_posswap.experiments.stages import STAGES, StagePlan, Subject
from hf_posswap.results import kinds
from tests.experiments.helpers import Recorder


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that a model is taken to; nothing is computed."""
    names: list[str] = []

    def noting(name: str) -> Any:
        return dataclasses.replace(STAGES[name], reach=lambda _: names.append(name))

    monkeypatch.setattr(stages, "STAGES", {name: noting(name) for name in STAGES})
    return names


class Events(Recorder):
    def stage(self, what: str) -> None:
        self.events = [*getattr(self, "events", []), what]


def subject(observer: Recorder) -> Subject:
    return Subject(
        StagePlan(load=lambda: None, scheme=None, seed=0, device="cpu", tokenizer=None, documents=[]), observer=observer
    )


def test_every_stage_of_results_has_one_definition() -> None:
    assert set(STAGES) == set(kinds.STAGES)
    assert all(set(stage.starts) <= set(STAGES) for stage in STAGES.values())


@pytest.mark.parametrize(
    ("wanted", "way", "events"),
    [
        (["stock"], ["stock"], ["loading"]),
        (["control"], ["stock", "control"], ["loading", "healing the control"]),
        (["healed"], ["stock", "swapped", "healed"], ["loading", "healing"]),
        (["swapped", "healed"], ["stock", "swapped", "healed"], ["loading", "healing"]),
        (
            ["calibrated", "healed"],
            ["stock", "swapped", "calibrated", "healed"],
            ["loading", "calibrating", "healing"],
        ),
        (["healed", "swapped"], ["stock", "swapped", "healed", "stock", "swapped"], ["loading", "healing", "loading"]),
    ],
)
def test_a_model_goes_through_the_stages_before(
    wanted: list[str], way: list[str], events: list[str], reached: list[str]
) -> None:
    observer = Events()
    model = subject(observer)
    for name in wanted:
        model.reach(name)
    assert reached == way
    assert observer.events == events
    assert model.stage == wanted[-1]

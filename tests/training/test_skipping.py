"""Positions that skip ahead: what is drawn, who reads them, and that far distances are trained by short windows."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hf_posswap
from hf_posswap.training.loop import heal
from hf_posswap.training.objectives import SKIPPED, objective_for
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.skipping import skipped_positions
from hf_posswap.training.supervision import Supervision
from hf_posswap.training.texts import Window
from tests.training.helpers import SPECIAL, WordTokenizer, bert, gpt2, llama, text

TEXTS = [text(400)]


def run(model: Any, is_bert: bool = False, **changes: Any) -> Any:
    settings = {"steps": 3, "length": 16, "batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 0} | changes
    options = HealingOptions(**{"positions": "skipped", "supervise": ("logits", "hidden")} | settings)
    return heal(model, TEXTS, WordTokenizer(bert=is_bert), options)


@given(length=st.integers(1, 40), more=st.integers(0, 200), seed=st.integers(0, 9))
def test_positions_rise_with_one_skip_within_the_target(length: int, more: int, seed: int) -> None:
    positions = skipped_positions((3, length), length + more, torch.Generator().manual_seed(seed))
    steps = positions.diff(dim=1)
    assert bool((positions[:, 0] == 0).all())
    assert int(positions.max()) < length + more
    assert bool((steps >= 1).all())
    assert bool(((steps > 1).sum(1) <= 1).all())


def test_the_whole_target_is_reached() -> None:
    drawn = skipped_positions((400, 8), 24, torch.Generator().manual_seed(0))
    assert sorted(set(drawn[:, -1].tolist())) == list(range(7, 24))


@pytest.mark.parametrize(("make", "scheme"), [(gpt2, "t5"), (llama, "alibi"), (bert, "rope")])
def test_the_model_reads_skipped_positions_and_the_teacher_counted_ones(make: Any, scheme: str) -> None:
    is_bert = make is bert
    model, teacher = hf_posswap.swap(make(), scheme), make()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    objective = objective_for(model, None)(Supervision.of(["logits", "hidden"]), 32, WordTokenizer(bert=is_bert))
    ids = [SPECIAL["[CLS]"], *range(5, 19), SPECIAL["[SEP]"]]
    batch = objective.batch([Window(ids, list(range(16)))], torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(9), torch.arange(9, 16) + 50])[None]

    class Reading(torch.nn.Module):
        """A model that keeps what it was called with."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config, self.given = inner, inner.config, {}

        def get_base_model(self) -> Any:
            return self.inner

        def forward(self, **given: Any) -> Any:
            self.given = given
            return self.inner(**given)

    reading, taught = Reading(model), Reading(teacher)
    found = objective.loss(reading, taught, batch | {SKIPPED: positions})
    assert torch.equal(reading.given["position_ids"], positions)
    assert bool(reading.given["attention_mask"].all())
    assert "position_ids" not in taught.given
    assert found.item() != objective.loss(model, teacher, batch).item()


def test_a_short_window_trains_far_distances() -> None:
    """A free bias has a value for each distance; those beyond the window get a gradient only if positions skip."""
    learnt = {}
    for positions in ("counted", "skipped"):
        model = hf_posswap.swap(llama(), "relative_bias:max_distance=64")
        before = copy.deepcopy([w for n, w in model.named_parameters() if "pos_scheme" in n])
        run(model, positions=positions, steps=12, scheme_learning_rate=0.1)
        after = [w for n, w in model.named_parameters() if "pos_scheme" in n]
        moved = [(a != b).reshape(-1, a.shape[-1]).any(0) for a, b in zip(after, before, strict=True)]
        learnt[positions] = int(torch.stack(moved).any(0).sum())
    assert learnt["counted"] <= 16 < learnt["skipped"]


def test_an_attention_stage_counts_and_runs_resume() -> None:
    report = run(hf_posswap.swap(llama(), "t5"), supervise=("attention=0.34", "logits"))
    again = run(hf_posswap.swap(llama(), "t5"), supervise=("attention=0.34", "logits"))
    assert [row["loss"] for row in report.history] == [row["loss"] for row in again.history]
    assert run(hf_posswap.swap(bert(), "rope"), is_bert=True).steps == 3


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (gpt2, {}, "this model is stock. Leave positions out"),
        (lambda: hf_posswap.swap(gpt2(), "t5"), {"target_length": 8}, "at length 16 it must be at least 16"),
        (
            lambda: hf_posswap.swap(gpt2(), "learned:length=40"),
            {"target_length": 41},
            "target_length is 41; at length 16 it must be at least 16 and, with this scheme, at most 40",
        ),
        (gpt2, {"positions": "counted", "target_length": 64}, "target_length=64 is for positions that skip"),
        (gpt2, {"packing": True}, "packing=True counts the positions of each document from 0"),
    ],
)
def test_what_cannot_skip_is_refused(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HealingError, match=message):
        run(make(), **{"supervise": ("labels",)} | changes)

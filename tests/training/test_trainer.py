"""What a run does to a model for its time, and what it leaves behind."""

import copy
from argparse import Namespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

import hf_posswap
from hf_posswap.experiments.stages import control_options
from hf_posswap.loading.entry import is_healed
from hf_posswap.training import distribution
from hf_posswap.training.checkpoints import TrainingCheckpointError
from hf_posswap.training.loop import HealingReport, heal
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.refinement import refine
from tests.training.helpers import WordTokenizer, bert, gpt2, learning, text

TEXTS = [text(1500), text(700, 1)]


def run(model: Any, *, is_bert: bool = False, **arguments: Any) -> HealingReport:
    given = {key: arguments.pop(key) for key in ("teacher", "output_dir", "resume", "accelerator") if key in arguments}
    settings = {"steps": 4, "length": 16, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 0} | arguments
    return heal(model, TEXTS, WordTokenizer(bert=is_bert), HealingOptions(**learning(settings)), **given)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_after_a_run_of_the_scheme_alone_all_weights_learn_again():
    model = hf_posswap.swap(gpt2(), "t5")
    refine(model, TEXTS, WordTokenizer(), 64)
    before = weights(model)
    report = run(model)
    assert report.parameters == sum(weight.numel() for weight in before.values())
    assert not any(torch.equal(before[name], weight) for name, weight in model.named_parameters() if weight.dim() == 2)


def test_what_was_frozen_before_is_frozen_after():
    model = hf_posswap.swap(gpt2(), "t5")
    model.transformer.wte.requires_grad_(False)
    run(model)
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["transformer.wte.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "scheme", "distill": 1.0, "objective": "embedding", "length": 33}, "at length 33"),
        ({"distill": 0.5, "objective": "embedding", "batch_size": 1}, "batch_size is 1"),
    ],
)
def test_a_refusal_leaves_the_model_as_it_was(changes: dict[str, Any], message: str):
    model = hf_posswap.swap(bert(hidden_dropout_prob=0.3), "t5").train()
    with pytest.raises(HealingError, match=message):
        run(model, is_bert=True, **changes)
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0, 0.3}


def test_a_resumed_run_that_had_ended_is_still_marked_as_healed(tmp_path):
    stock = gpt2()
    run(hf_posswap.swap(copy.deepcopy(stock), "t5"), output_dir=tmp_path, checkpoint_every=2)
    again = hf_posswap.swap(copy.deepcopy(stock), "t5")
    run(again, output_dir=tmp_path, checkpoint_every=2, resume=True)
    assert is_healed(again.config)
    assert is_healed(hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path).config)


def test_checkpoints_of_an_earlier_run_are_found_before_anything_changes(tmp_path):
    model = hf_posswap.swap(gpt2(), "t5")
    run(copy.deepcopy(model), output_dir=tmp_path, checkpoint_every=2)
    model.train()
    with pytest.raises(TrainingCheckpointError, match="checkpoint-0000004"):
        run(model, output_dir=tmp_path)
    assert model.training


def test_a_teacher_that_is_given_teaches_in_evaluation_mode_and_gets_its_own_back():
    stock = gpt2(resid_pdrop=0.5)
    reports = []
    for training in (False, True):
        teacher = copy.deepcopy(stock).train(training)
        reports.append(run(hf_posswap.swap(copy.deepcopy(stock), "alibi"), teacher=teacher, distill=1.0))
        assert teacher.training == training
    assert [row["loss"] for row in reports[0].history] == [row["loss"] for row in reports[1].history]


def test_an_accelerator_from_an_earlier_run_takes_every_step():
    accelerator = distribution.make_accelerator(HealingOptions(steps=1))
    accelerator.step = 3  # out of step with an accumulation of 2
    model = hf_posswap.swap(gpt2(), "t5")
    before = weights(model)
    run(model, accelerator=accelerator, accumulation=2)
    assert not torch.equal(before["transformer.wte.weight"], model.transformer.wte.weight)


def test_an_accelerator_that_computes_otherwise_than_the_options_say_is_refused(monkeypatch):
    accelerator = Accelerator()
    monkeypatch.setattr(type(accelerator), "mixed_precision", property(lambda _: "bf16"))
    with pytest.raises(HealingError, match="computes in bf16, and the run's precision is 'no'"):
        run(hf_posswap.swap(gpt2(), "t5"), accelerator=accelerator)


def test_the_configuration_of_a_launch_does_not_choose_the_precision(monkeypatch):
    given: dict[str, Any] = {}
    stand_in = Namespace(num_processes=1, distributed_type=DistributedType.NO)
    monkeypatch.setattr(distribution, "is_initialized", lambda: False)
    monkeypatch.setattr(distribution, "Accelerator", lambda **arguments: given.update(arguments) or stand_in)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert distribution.make_accelerator(HealingOptions(steps=1)) is stand_in
    assert given["mixed_precision"] == "no"


def test_windows_beyond_a_model_s_positions_are_refused():
    with pytest.raises(HealingError, match="length is 64, and this stock model reads at most 32"):
        run(gpt2(), length=64)
    with pytest.raises(HealingError, match="length is 64, and this swapped model reads at most 40"):
        run(hf_posswap.swap(gpt2(), "learned:length=40"), length=64)


def test_only_a_swapped_model_has_a_mechanism_to_fade_out():
    with pytest.raises(HealingError, match=r"ramp=0\.5.*this model is stock"):
        run(gpt2(), ramp=0.5)


def test_the_control_drops_out_if_the_swapped_model_does():
    assert not control_options(HealingOptions(steps=1, distill=1.0)).drops_out
    assert control_options(HealingOptions(steps=1, supervise=("labels",))).drops_out
    assert control_options(HealingOptions(steps=1, distill=1.0, dropout=True)).drops_out


def test_the_budget_of_tokens_is_read_where_documents_are_shorter_than_windows():
    short = [text(10, seed) for seed in range(40)]
    options = HealingOptions(
        tokens=4000, length=32, batch_size=4, objective="embedding", distill=1.0, checkpoint_every=0
    )
    report = heal(hf_posswap.swap(bert(), "rope"), short, WordTokenizer(bert=True), options)
    assert report.tokens == pytest.approx(4000, rel=0.02)

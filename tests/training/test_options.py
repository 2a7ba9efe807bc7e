import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.phases import plan_phases
from hf_posswap.training.supervision import Supervision


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "tokens is None, steps is None"),
        ({"tokens": 5, "steps": 5}, "one of the two"),
        ({"tokens": 0}, "tokens is 0; it must be at least 1"),
        ({"steps": 1, "length": 1}, "length is 1; it must be at least 2"),
        ({"steps": 1, "distill": 1.5}, "distill is 1.5; it must be at least 0 and at most 1"),
        ({"steps": 1, "ramp": -0.1}, "ramp is -0.1"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate is 0.0; it must be greater than 0"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning_rate is nan"),
        ({"steps": 1, "objective": "clm"}, "value of objective: 'clm'. Did you mean 'lm'? Allowed: embedding, lm, mlm"),
        ({"steps": 1, "train": "some"}, "unknown value of train: 'some'. Did you mean 'scheme'? Allowed: all, scheme"),
        ({"steps": 1, "weight_decay": float("nan")}, "weight_decay is nan (float); it must be a finite number"),
        ({"steps": 1, "clip": float("inf")}, "clip is inf (float); it must be a finite number"),
        ({"steps": 1, "weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"steps": 2.5}, "steps is 2.5 (float); it must be an integer or None"),
        ({"steps": 1, "length": "16"}, "length is '16' (str); it must be a list of numbers or an integer or None"),
        ({"steps": 1, "seed": -1}, "seed is -1; it must be at least 0"),
        ({"steps": 1, "seed": 10**13}, "seed is 10000000000000; it must be within ±2147483647"),
        ({"steps": 1, "length": []}, "length is an empty list"),
        ({"steps": 1, "length": [512, 1]}, "length is 1; it must be at least 2"),
        ({"steps": 1, "supervise": ["logit"]}, "'logit'. Did you mean 'logits'? Allowed: attention, hidden, labels, l"),
        ({"steps": 1, "supervise": ["hidden=x"]}, "'hidden=x' has no weight that can be used: write a positive number"),
        ({"steps": 1, "supervise": ["hidden=0"]}, "'hidden=0' has no weight that can be used"),
        ({"steps": 1, "supervise": ["logits=nan"]}, "'logits=nan' has no weight that can be used"),
        ({"steps": 1, "supervise": ["logits", "logits=2"]}, "'logits' is given twice, in 'logits,logits=2'"),
        ({"steps": 1, "supervise": ["attention=1", "logits"]}, "'attention=1' is a share of the tokens"),
        ({"steps": 1, "supervise": ["attention=0.5"]}, "'attention=0.5' leaves tokens over that nothing would read"),
        ({"steps": 1, "supervise": ["logits"], "distill": 1.0}, "and supervise is 'logits': leave distill out"),
        ({"steps": 1, "supervise": ["attention", "logits"], "ramp": 0.5}, "Leave one of the two out"),
        ({"steps": 1, "precision": "fp16"}, "value of precision: 'fp16'. Did you mean 'bf16'? Allowed: bf16, no"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(HealingError) as error:
        HealingOptions(**changes)
    assert message in str(error.value)


@given(tokens=st.integers(1, 10**8), length=st.integers(2, 4096), batch=st.integers(1, 64), processes=st.integers(1, 8))
def test_the_budget_of_tokens_gives_the_nearest_number_of_steps(tokens, length, batch, processes):
    options = HealingOptions(tokens=tokens, batch_size=batch, accumulation=3)
    per_step = length * batch * 3 * processes
    steps = options.steps_for(length, processes)
    assert steps == 1 or abs(steps * per_step - tokens) <= per_step / 2


def test_options_are_json():
    options = HealingOptions(steps=3, objective="mlm", length=(16, 32), supervise=("logits", "hidden=10"))
    assert HealingOptions(**json.loads(json.dumps(options.to_dict()))) == options


def test_how_often_checkpoints_are_written_does_not_make_another_run():
    first, second = (HealingOptions(steps=3, checkpoint_every=every).identity() for every in (1, 5))
    assert first == second != HealingOptions(steps=3, seed=1).identity()


def test_words_of_supervision_have_usual_weights():
    assert Supervision.of(["logits", "hidden", "attention"]) == Supervision(logits=1, hidden=10, attention=0.25)
    assert Supervision.of(["attention"]) == Supervision(attention=1)
    assert Supervision.of(["labels=0.5", "hidden = 3"]).words == ("labels=0.5", "hidden=3")
    assert not Supervision.of(["labels"]).has_teacher


def test_distill_is_the_old_name_of_logits():
    assert HealingOptions(steps=1).supervision() == Supervision(logits=1, hidden=10)
    options = HealingOptions(steps=1, distill=0.75)
    assert options.supervision("lm", 6) == Supervision(labels=0.25, logits=0.75)
    assert options.supervision("embedding", 6) == Supervision(labels=0.25, logits=0.75, hidden=4.5)


def test_phases_divide_the_budget():
    words = Supervision.of(["attention", "logits"])
    options = HealingOptions(tokens=16_000, batch_size=4, length=(100, 400))
    phases = plan_phases(options, words, options.lengths, float, 1)
    assert [(p.stage, p.length, p.batch_size, p.first, p.steps) for p in phases] == [
        ("attention", 100, 4, 0, 10),
        ("outputs", 100, 4, 10, 15),
        ("outputs", 400, 1, 25, 15),
    ]
    for steps in range(1, 9):
        counted = plan_phases(HealingOptions(steps=steps), words, (100, 400), float, 1)
        assert sum(phase.steps for phase in counted) == counted[-1].end == steps
        assert all(one.end == other.first for one, other in itertools.pairwise(counted))

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_posswap.training.options import HealingError, HealingOptions


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
        ({"steps": 1, "length": "16"}, "length is '16' (str); it must be an integer or None"),
        ({"steps": 1, "seed": -1}, "seed is -1; it must be at least 0"),
        ({"steps": 1, "seed": 10**13}, "seed is 10000000000000; it must be within ±2147483647"),
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
    options = HealingOptions(steps=3, objective="mlm")
    assert HealingOptions(**json.loads(json.dumps(options.to_dict()))) == options


def test_how_often_checkpoints_are_written_does_not_make_another_run():
    first, second = (HealingOptions(steps=3, checkpoint_every=every).identity() for every in (1, 5))
    assert first == second != HealingOptions(steps=3, seed=1).identity()

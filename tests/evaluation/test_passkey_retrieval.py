"""Passkey retrieval: the prompts, what a model scores that finds every key or none, and what is refused."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_posswap.evaluation import EvaluationError, passkey
from hf_posswap.evaluation.passkey_retrieval import CHANCE, PasskeyTask, draw_keys, passkey_rows
from hf_posswap.sources import load_model, load_tokenizer
from tests.evaluation.copier import Copier


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("demo:gpt2")


@pytest.fixture(scope="module")
def copier(tokenizer: Any) -> nn.Module:
    return Copier(len(tokenizer))


def test_a_model_that_looks_for_the_key_finds_it_everywhere(tokenizer: Any, copier: nn.Module) -> None:
    rows = passkey_rows(copier, tokenizer, [80, 300], depths=(0, 0.5, 1), trials=10)
    assert [(row.length, row.depth) for row in rows] == [(80, 0), (80, 0.5), (80, 1), (300, 0), (300, 0.5), (300, 1)]
    assert {(row.correct, row.exact, row.trials, row.note) for row in rows} == {(1.0, 1.0, 10, "")}


def test_a_model_that_sees_the_last_tokens_only_finds_keys_there(tokenizer: Any) -> None:
    """A key further back than the model's reach is not found: neither chosen nor written."""
    rows = passkey_rows(Copier(len(tokenizer), reach=60), tokenizer, [300], depths=(0, 1), trials=10)
    assert [(row.correct, row.exact) for row in rows] == [(0.0, 0.0), (1.0, 1.0)]


def test_the_log_probability_is_that_of_the_right_key(tokenizer: Any) -> None:
    """A Copier's logits are 1 for the token that it expects and 0 for every other."""
    vocabulary = len(tokenizer)
    rows = passkey_rows(Copier(vocabulary, reach=60), tokenizer, [300], depths=(0, 1), trials=10)
    ignorant, knowing = (logit - math.log(math.e + vocabulary - 1) for logit in (0, 1))
    assert [row.log_probability for row in rows] == [pytest.approx(ignorant), pytest.approx(knowing)]


def test_the_log_probability_is_what_a_plain_forward_gives(tokenizer: Any) -> None:
    model = load_model("demo:gpt2").eval()
    (row,) = passkey_rows(model, tokenizer, [80], depths=(0.5,), trials=3)
    task = PasskeyTask(tokenizer, (0.5,), 3, 0)
    expected = []
    for key in task.keys:
        prompt = task.prompt(key, 0.5, 80)
        with torch.no_grad():
            scores = model(prompt.ids[None]).logits[0].log_softmax(-1)
        tokens = range(80 - prompt.answer, 80)
        expected.append(sum(scores[place - 1, prompt.ids[place]].item() for place in tokens) / prompt.answer)
    assert row.log_probability == pytest.approx(sum(expected) / 3, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_model_that_guesses_comes_out_at_chance_exactly(tokenizer: Any, seed: int) -> None:
    """The small GPT-2 has read no digits to speak of: whatever it prefers is right once in ten times."""
    rows = passkey_rows(load_model("demo:gpt2"), tokenizer, [100], depths=(0, 1), trials=10, seed=seed)
    assert [row.correct for row in rows] == [CHANCE, CHANCE]
    assert [row.exact for row in rows] == [0.0, 0.0]


@pytest.mark.slow
def test_a_real_llama_finds_keys_within_its_train_length() -> None:
    (row,) = passkey_rows(load_model("demo:llama"), load_tokenizer("demo:llama"), [128], depths=(0.5,), trials=5)
    assert (row.correct, row.exact) == (1.0, 1.0)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(70, 400), depth=st.floats(0, 1), seed=st.integers(0, 1000))
def test_prompts_are_exactly_as_long_as_asked_for(tokenizer: Any, length: int, depth: float, seed: int) -> None:
    task = PasskeyTask(tokenizer, (depth,), 1, seed)
    prompt = task.prompt(task.keys[0], depth, length)
    text = tokenizer.decode(prompt.ids)
    assert len(prompt.ids) == length
    assert text.startswith("There is a pass key hidden")
    assert text.endswith(f"The pass key is #{task.keys[0]}")
    assert text.count(f"#{task.keys[0]}") == 3


def test_keys_stand_where_the_depth_says(tokenizer: Any) -> None:
    task = PasskeyTask(tokenizer, (0, 0.25, 1), 1, 0)
    places = []
    for depth in task.depths:
        text = tokenizer.decode(task.prompt(task.keys[0], depth, 1000).ids)
        places.append(text.index("#") / len(text))
    assert places[0] < 0.1
    assert places[1] == pytest.approx(0.25, abs=0.05)
    assert places[2] > 0.9


def test_every_ten_keys_have_ten_first_digits() -> None:
    keys = draw_keys(25, seed=3)
    assert Counter(key[0] for key in keys[:10]) == Counter(key[0] for key in keys[10:20])
    assert len({key[0] for key in keys[:10]}) == 10
    assert all(len(key) == 5 for key in keys)
    assert len(keys) == 25
    assert keys == draw_keys(25, seed=3) != draw_keys(25, seed=4)


def test_how_much_is_read_at_once_and_by_how_many_changes_nothing(tokenizer: Any) -> None:
    model = load_model("demo:gpt2")
    usual = passkey_rows(model, tokenizer, [80], depths=(0.5,), trials=10)
    assert passkey_rows(model, tokenizer, [80], depths=(0.5,), trials=10, batch_tokens=1) == usual


def test_lengths_too_short_or_too_long_are_stated_gaps(tokenizer: Any) -> None:
    frame = passkey(Copier(len(tokenizer), longest=256), tokenizer, [20, 100, 257], depths=(0.5,), trials=1)
    assert frame["correct"].isna().tolist() == [True, False, True]
    assert frame["note"].tolist() == ["a prompt needs at least 66 tokens", "", "longest position 256"]
    assert frame["chance"].tolist() == [CHANCE] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"depths": (0, 1.5)}, r"depths are \[0, 1.5\]"), ({"depths": ()}, "depths"), ({"trials": 0}, "trials is 0")],
)
def test_what_cannot_be_measured_is_refused(
    tokenizer: Any, copier: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        passkey_rows(copier, tokenizer, [100], **options)


def test_a_tokenizer_without_digits_is_refused(copier: nn.Module) -> None:
    class Words:
        bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split()]}

    with pytest.raises(EvaluationError, match="does not tell the digits apart"):
        passkey_rows(copier, Words(), [100])

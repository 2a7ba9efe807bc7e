"""RULER's tasks: what the prompts hold, and what a model scores that has a known answer, against plain computations."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_posswap.evaluation.errors import EvaluationError, UnmeasurableError
from hf_posswap.evaluation.ruler import RulerPrompt, RulerTask, ruler_rows
from hf_posswap.evaluation.ruler_tasks import TASKS, Material, Sample, score
from hf_posswap.evaluation.run import prepare_evaluation, run_evaluation
from hf_posswap.evaluation.settings import EvaluationSettings
from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.results.groups import read_results
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.texts.sources import resolve_texts
from tests.evaluation.copier import Copier


@pytest.fixture(scope="module")
def book() -> str:
    return resolve_texts("demo:book/test")[0].read()[:40_000]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("demo:gpt2")


def sample(name: str, book: str, size: int = 3, length: int = 1024, seed: int = 0) -> Sample:
    return TASKS[name].make(random.Random(seed), Material([book]), size, length)


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_holds_its_answers_and_as_many_wrong_ones(name: str, book: str) -> None:
    made = sample(name, book)
    answers = {"single-repeated": 1, "single-book": 1, "multi-key": 1, "multi-value": 4, "variables": 5}
    assert len(made.answers) == answers.get(name, 10 if name == "common-words" else 3)
    assert score(made.answers, made.prompt) == score(made.answers, made.answer) == 1.0
    assert score(made.answers, made.wrong) == 0.0
    assert len(made.wrong.split()) == len(made.answer.split())
    assert sample(name, book) == made
    assert sample(name, book, seed=1).answers != made.answers


def test_the_answers_are_what_the_prompt_says(book: str) -> None:
    """Each task solved by other code, from its prompt alone."""
    for name in ("single-repeated", "single-book", "multi-key", "multi-value"):
        made = sample(name, book, size=5)
        hidden = re.findall(r"The code number of (\S+) is: (\d{7})\.", made.prompt)
        key = re.search(r"code numbers? of (\S+) in the text above (?:is|are)$", made.prompt).group(1)
        assert [value for of_key, value in hidden if of_key == key] == list(made.answers)
        assert len(hidden) == (4 if name.startswith("multi") else 1)
    text, question = sample("variables", book).prompt.split("\n\n", 2)[2].split("Question:")
    values = {"VAR " + name: value for name, value in re.findall(r"VAR (\w{5}) = (\d{5}|VAR \w{5})\b", text)}
    asked = re.search(r"have the value (\d{5})", question).group(1)

    def value_of(found: str) -> str:
        return value_of(values[found]) if found in values else found

    assert [name[4:] for name in values if value_of(name) == asked] == list(sample("variables", book).answers)
    for length, (often, seldom) in {1024: (6, 1), 4096: (30, 3)}.items():
        common = sample("common-words", book, length=length)
        counts = Counter(re.findall(r"\d+\. (\w+)", common.prompt.split("these in mind.")[2]))
        assert sorted(set(counts.values())) == [seldom, often]
        assert {word for word, count in counts.items() if count == often} == set(common.answers)
    frequent = sample("frequent-words", book, size=200)
    counts = Counter(frequent.prompt.split("frequent ones. ")[1].split("\nQuestion")[0].split())
    assert [word for word, _ in counts.most_common(4)] == ["...", *frequent.answers]


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_is_as_long_as_fits(name: str, book: str, tokenizer: Any) -> None:
    task = RulerTask(tokenizer, [book], [name], 1, 0)
    needed = task.prompt(name, 16, 0)
    assert isinstance(needed, int)
    smallest = task.prompt(name, needed, 0)
    assert isinstance(smallest, RulerPrompt)
    lengths = []
    for length in (1000, 2000):
        made = task.prompt(name, length, 0)
        assert isinstance(made, RulerPrompt)
        lengths.append(len(made.ids) + TASKS[name].generated)
        assert lengths[-1] <= length
    assert lengths[0] > 0.85 * 1000
    assert lengths[1] > 1.5 * lengths[0]


class Words:
    """A tokenizer with a token for each word, and digits of a number together."""

    bos_token_id = None

    def __init__(self) -> None:
        self.words: list[str] = []

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        found = re.findall(r"[\w-]+|[^\w\s]", text)
        self.words += [word for word in dict.fromkeys(found) if word not in self.words]
        return {"input_ids": [1 + self.words.index(word) for word in found]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join("" if token == 0 else self.words[token - 1] for token in ids)


def test_a_model_that_copies_scores_what_it_copies(book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for the last two tokens, so it finds the number where the question repeats the needle's last two."""
    monkeypatch.setattr(
        "hf_posswap.evaluation.ruler_tasks.CODE", "Once more: the code number of {key} in the text above is {value}."
    )
    words, sure = Words(), 20.0
    rows = ruler_rows(Copier(3000, sure=sure), words, [book], [400], tasks=["single-book"], trials=2)
    (row,) = rows
    assert (row.task, row.length, row.score, row.trials, row.note) == ("single-book", 400, 1.0, 2, "")
    assert row.log_probability == pytest.approx(0.0, abs=1e-4)
    assert row.gain == pytest.approx(sure, abs=1e-3)
    assert row.chance_log_probability == pytest.approx(-sure, abs=1e-3)
    short = ruler_rows(Copier(3000, sure=sure, reach=5), words, [book], [400], tasks=["single-book"], trials=2)
    assert (short[0].score, short[0].gain) == (0.0, pytest.approx(0.0, abs=1e-6))


def test_the_numbers_are_those_of_a_plain_computation(
    book: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, generated = "single-book", 12
    monkeypatch.setitem(TASKS, name, replace(TASKS[name], generated=generated))
    model: nn.Module = load_model("demo:gpt2")
    (row,) = ruler_rows(model, tokenizer, [book], [200], tasks=[name], trials=2, seed=5)
    task = RulerTask(tokenizer, [book], [name], 2, 5)
    scores, gains = [], []
    for trial in range(2):
        made = task.prompt(name, 200, trial)
        assert isinstance(made, RulerPrompt)
        ids = made.ids
        with torch.no_grad():
            for _ in range(generated):
                ids = torch.cat([ids, model(ids[None]).logits[0, -1:].argmax(-1)])
        scores.append(score(made.sample.answers, tokenizer.decode(ids[len(made.ids) :])))
        means = []
        for answer in (made.right, made.wrong):
            whole = torch.cat([made.ids, answer])
            with torch.no_grad():
                logits = model(whole[None]).logits[0, len(made.ids) - 1 : -1].log_softmax(-1)
            means.append(float(logits.gather(-1, answer[:, None]).mean()))
        gains.append(means[0] - means[1])
    assert row.score == pytest.approx(sum(scores) / 2)
    assert row.gain == pytest.approx(sum(gains) / 2, abs=1e-4)
    assert row.gain_low == pytest.approx(min(gains), abs=1e-4)


def test_the_scoring_rule_is_the_share_of_answers_in_the_text_in_any_case() -> None:
    assert score(["Ab", "1234567"], "so: aB and 1234568") == 0.5
    assert score(["a", "b", "c", "d"], "D, c") == 0.5


def test_it_is_resumed_and_drawn(book: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    settings = EvaluationSettings(
        model="demo:gpt2",
        texts=(str(tmp_path / "book.txt"),),
        lengths=(120, 240, 400),
        measurements=("ruler",),
        tasks=("frequent-words", "single-book"),
        trials=2,
    )
    prepared = prepare_evaluation(settings)
    assert [part.name for part in prepared.measurements.parts] == ["ruler-120", "ruler-240", "ruler-400"]
    rows = run_evaluation(prepared, tmp_path / "out")["ruler"]["rows"]
    assert [(row["task"], row["length"]) for row in rows[:2]] == [("single-book", 120), ("frequent-words", 120)]
    notes = {(row["task"], row["length"]): row["note"] for row in rows}
    assert notes["single-book", 120].startswith("a prompt of single-book needs at least")
    assert notes["single-book", 400] == "longest position 256"
    assert notes["single-book", 240] == ""
    ((_, (shares, gains)),) = all_figures(read_results(tmp_path / "out"))
    assert [panel.title for panel in shares.panels] == ["stock"]
    assert shares.table.rows[0][:3] == ("stock", "single-book", "—")
    assert [panel.title for panel in gains.panels] == ["single-book"], "what has no value is told below the figure"
    assert "stock: nothing at length 400 (longest position 256)." in gains.gaps


def test_what_cannot_be_is_refused(book: str, tokenizer: Any) -> None:
    with pytest.raises(EvaluationError, match="unknown task 'juggling'. Allowed: single-repeated"):
        RulerTask(tokenizer, [book], ["juggling"], 1, 0)
    with pytest.raises(EvaluationError, match="the number of trials is 0"):
        RulerTask(tokenizer, [book], ["variables"], 0, 0)
    with pytest.raises(UnmeasurableError, match="these have 2 words"):
        RulerTask(tokenizer, ["winter summer."], ["variables"], 1, 0)

"""Key tokens: which tokens the stock model chooses, and the loss over them, against plain computations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_posswap
from hf_posswap.evaluation import EvaluationError, key_tokens
from hf_posswap.evaluation.key_token_choice import plan_keys
from hf_posswap.evaluation.perplexity import LengthRow, perplexity_rows
from hf_posswap.evaluation.run import prepare_evaluation, run_evaluation
from hf_posswap.evaluation.settings import EvaluationSettings
from hf_posswap.evaluation.windows import plan
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.texts.sources import resolve_texts
from tests.evaluation.copier import Copier

VOCABULARY, LONG = 3000, 256
NEAR, FAR = 20, 100
"""Distances of a repetition: within the short context of LONG / 8 tokens, and beyond it."""


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    return load_model("demo:gpt2")


@pytest.fixture(scope="module")
def book() -> Tensor:
    text = resolve_texts("demo:book/test")[0].read()[:30_000]
    return torch.tensor(load_tokenizer("demo:gpt2")(text, verbose=False)["input_ids"])


def repeating() -> Tensor:
    """A text of LONG tokens: new ones, then 64 that came FAR tokens before, then 64 that came NEAR tokens before."""
    ids = torch.randperm(VOCABULARY - 1, generator=torch.Generator().manual_seed(0))[:LONG] + 1
    for place in range(128, LONG):
        ids[place] = ids[place - (FAR if place < 192 else NEAR)]
    return ids


def test_a_copier_gains_from_long_context_where_the_repetition_is_far() -> None:
    copier = Copier(VOCABULARY, LONG, sure=30.0)
    found = key_tokens(copier, repeating(), [LONG, 64], budget=LONG)
    # The first two tokens of a repetition continue no earlier pair of tokens.
    assert found.tolist() == [2 <= target < 64 for target in range(128)]
    assert not key_tokens(Copier(VOCABULARY, LONG, reach=50, sure=30.0), repeating(), [LONG], budget=LONG).any()


def test_the_loss_over_key_tokens_tells_a_model_that_reads_far_from_one_that_does_not() -> None:
    text, far, near = repeating(), Copier(VOCABULARY, LONG, sure=30.0), Copier(VOCABULARY, LONG, reach=50, sure=30.0)
    keys = key_tokens(far, text, [LONG], budget=LONG)

    def row(model: nn.Module) -> LengthRow:
        return perplexity_rows(model, text, [LONG], ("same-targets",), budget=LONG, keys=keys)[1]

    assert (row(far).protocol, row(far).tokens) == ("key-tokens", 62)
    assert row(far).loss == pytest.approx(0.0, abs=1e-6)
    assert row(near).loss == pytest.approx(30.0, abs=1e-3)


def test_the_choice_and_the_loss_are_those_of_a_plain_loop(gpt2: nn.Module, book: Tensor) -> None:
    lengths, budget, short, gain, least = [64, LONG], 4 * LONG, LONG // 8, 0.5, -4.0  # more suits so small a model
    found = key_tokens(gpt2, book, lengths, budget=budget, gain=gain, least=least)

    def losses(start: int, first: int, stop: int) -> list[float]:
        with torch.no_grad():
            predicted = gpt2(book[None, start : stop - 1]).logits[0].log_softmax(-1)
        return [float(-predicted[target - start - 1, book[target]]) for target in range(first, stop)]

    expected, chosen = [], []
    for window in plan("same-targets", len(book), lengths, budget)[LONG]:
        for first in range(window.first_target, window.stop, short // 4):
            stop = first + short // 4
            both = zip(losses(window.start, first, stop), losses(first - short, first, stop), strict=True)
            for long_loss, short_loss in both:
                expected.append(short_loss - long_loss > gain and -long_loss > least)
                chosen += [long_loss] * expected[-1]
    assert found.tolist() == expected
    assert 5 < sum(expected) < len(expected) // 4
    rows = perplexity_rows(gpt2, book, lengths, ("same-targets",), budget=budget, keys=found)
    assert [(row.protocol, row.length) for row in rows] == [
        (protocol, length) for protocol in ("same-targets", "key-tokens") for length in lengths
    ]
    assert rows[3].loss == pytest.approx(sum(chosen) / len(chosen), abs=1e-4)
    assert rows[3].tokens == rows[2].tokens == sum(expected)
    assert rows[3].loss < rows[2].loss, "they were chosen because long context helps"


def test_documents_shorter_than_the_context_have_the_same_targets(book: Tensor) -> None:
    texts = [book[:300], book[300:340], book[340:343], book[400:401]]
    planned = plan_keys(texts, [64, 300], 10_000, LONG)
    for (_, long), (_, short) in zip(planned.long_windows, planned.short_windows, strict=True):
        targets = [[t for window in own for t in range(window.first_target, window.stop)] for own in (long, short)]
        assert targets[0] == targets[1]
        assert all(0 <= window.start < window.first_target for window in short)


def test_a_text_without_key_tokens_has_gaps_with_the_reason(gpt2: nn.Module, book: Tensor) -> None:
    none = torch.zeros(128, dtype=torch.bool)
    rows = perplexity_rows(gpt2, book, [64, 256], ("same-targets",), budget=256, keys=none)
    assert [row.note for row in rows] == [
        "",
        "",
        *["none of 128 tokens is a key token: read more, or lower the gain"] * 2,
    ]


def test_what_cannot_be_is_refused(gpt2: nn.Module, book: Tensor) -> None:
    with pytest.raises(EvaluationError, match="among 9 targets, and 32 are measured"):
        perplexity_rows(gpt2, book, [64], ("same-targets",), budget=64, keys=torch.ones(9, dtype=torch.bool))
    with pytest.raises(EvaluationError, match="Give that protocol too"):
        perplexity_rows(gpt2, book, [64], ("windows",), keys=torch.ones(9, dtype=torch.bool))
    with pytest.raises(EvaluationError, match="this one is swapped"):
        key_tokens(hf_posswap.swap(load_model("demo:gpt2"), "alibi"), book, [64])


def test_a_swapped_model_is_measured_on_the_tokens_that_stock_chooses(
    gpt2: nn.Module, book: Tensor, tmp_path: Path
) -> None:
    """Both where the scheme is swapped in for the evaluation, and in a checkpoint whose stock model is named."""
    (tmp_path / "book.txt").write_text(resolve_texts("demo:book/test")[0].read()[:30_000], encoding="utf-8")
    swapped = hf_posswap.swap(load_model("demo:gpt2"), "alibi")
    keys = key_tokens(gpt2, book, [64, 300], budget=600, gain=0.5)
    assert keys.any()
    rows = perplexity_rows(swapped, book, [64, 300], ("same-targets",), budget=600, keys=keys)
    expected = [(row.length, row.loss, row.tokens) for row in rows[2:]]
    folder = tmp_path / "swapped"
    swapped.save_pretrained(folder)
    load_tokenizer("demo:gpt2").save_pretrained(folder)
    shared: dict[str, Any] = {
        "texts": (str(tmp_path / "book.txt"),),
        "lengths": (64, 300),
        "tokens": 600,
        "key_gain": 0.5,
    }
    keys_only: dict[str, Any] = shared | {"measurements": ("key-tokens",)}
    for name, given in {
        "in-place": {"model": "demo:gpt2", "pos_scheme": "alibi"},
        "checkpoint": {"model": str(folder), "stock": "demo:gpt2"},
    }.items():
        settings = EvaluationSettings(**keys_only | given)
        measured = run_evaluation(prepare_evaluation(settings), tmp_path / name)["lengths"]["rows"]
        assert {(row["protocol"], row["scheme"]) for row in measured} == {("key-tokens", "alibi")}
        assert [(row["length"], row["loss"], row["tokens"]) for row in measured] == expected
    unnamed = prepare_evaluation(EvaluationSettings(model=str(folder), **shared))
    assert "key-tokens" not in unnamed.settings.measurements, "the stock model is not loaded unless it is named"
    with pytest.raises(EvaluationError, match="--stock demo:gpt2 is for a swapped checkpoint"):
        prepare_evaluation(EvaluationSettings(model="demo:gpt2", **shared, stock="demo:gpt2"))
    stranger = EvaluationSettings(model=str(folder), stock="demo:llama", **keys_only)
    with pytest.raises(EvaluationError, match="'demo:llama' chooses no key tokens"):
        run_evaluation(prepare_evaluation(stranger), tmp_path / "stranger")
    content = json.loads((folder / "config.json").read_text())
    del content["pos_scheme"]["base_model"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="Name the stock model with --stock"):
        prepare_evaluation(EvaluationSettings(model=str(folder), **keys_only))

"""Masked-token loss by length: the same masked tokens at every length, and the loss of the obvious loop."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertForMaskedLM

import hf_posswap
from hf_posswap.evaluation import EvaluationError, TextTooShortError, masked_loss_by_length
from hf_posswap.evaluation.masked import masked_loss_rows, plan_masked
from hf_posswap.evaluation.texts import tokenise
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.texts.masking import MASKED_SHARE
from hf_posswap.texts.sources import resolve_texts
from tests.training.helpers import WORDS, WordTokenizer
from tests.training.helpers import bert as small_bert


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("demo:bert")


@pytest.fixture(scope="module")
def bert(minilm_path: Path) -> nn.Module:
    """Real word embeddings and layers, and a fresh head tied to the words."""
    torch.manual_seed(0)
    return BertForMaskedLM.from_pretrained(minilm_path).eval()


@pytest.fixture(scope="module")
def book(tokenizer: Any) -> Tensor:
    return tokenise(tokenizer, resolve_texts("demo:book/test")[0].read()[:20_000])


@pytest.mark.parametrize("lengths", [[32, 128], [30, 77, 100]])
def test_agrees_with_the_obvious_loop(bert: nn.Module, tokenizer: Any, book: Tensor, lengths: list[int]) -> None:
    rows = masked_loss_rows(bert, tokenizer, book, lengths, budget=300)
    assert [row.length for row in rows] == lengths
    plans = plan_masked(tokenizer, [book], lengths, 300, 0)
    for row in rows:
        total, tokens = 0.0, 0
        for window in plans[row.length]:
            labels = torch.full_like(window.ids, -100).index_put((window.places,), window.targets)
            with torch.no_grad():
                loss = bert(window.ids.unsqueeze(0), labels=labels.unsqueeze(0)).loss.item()
            total, tokens = total + loss * len(window.places), tokens + len(window.places)
        assert row.loss == pytest.approx(total / tokens, abs=1e-4)
        assert (row.tokens, row.protocol) == (tokens, "masked")
    (alone,) = masked_loss_rows(bert, tokenizer, book, lengths, budget=300, only=lengths[:1])
    assert dataclasses.replace(alone, seconds=rows[0].seconds) == rows[0]


@settings(max_examples=30, deadline=None)
@given(lengths=st.sets(st.integers(4, 60), min_size=1, max_size=4), budget=st.integers(1, 400), seed=st.integers(0, 99))
def test_every_length_scores_the_same_masked_tokens(lengths: set[int], budget: int, seed: int) -> None:
    """Every token of the text is another one, so that a target says where it stood."""
    tokenizer = WordTokenizer(bert=True)
    text = torch.arange(100, 300)
    scored = []
    for length, windows in plan_masked(tokenizer, [text], sorted(lengths), budget, seed).items():
        for window in windows:
            assert len(window.ids) == length
            assert (window.ids[0], window.ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert (window.ids[window.places] == tokenizer.mask_token_id).all()
            shown = window.ids != tokenizer.mask_token_id
            first = window.targets[0] - window.places[0] + 1
            inside = torch.arange(int(first), int(first) + length - 2)
            assert (window.ids[1:-1] == inside)[shown[1:-1]].all(), "what is not masked is the text"
            assert (inside[window.places - 1] == window.targets).all()
        scored.append(sorted(target for window in windows for target in window.targets.tolist()))
    assert all(tokens == scored[0] for tokens in scored)
    assert len(set(scored[0])) == len(scored[0]), "no token is scored twice"
    regions = max(1, min(budget // max(lengths), 200 // (max(lengths) - 2)))
    assert len(scored[0]) >= regions * max(1, int(MASKED_SHARE * (max(lengths) - 2)) - 1)


def test_seeds_choose_the_masked_tokens(tokenizer: Any, book: Tensor) -> None:
    def masked(seed: int) -> list[int]:
        return plan_masked(tokenizer, [book], [64], 64, seed)[64][0].places.tolist()

    assert masked(1) == masked(1) != masked(2)


def test_more_of_the_text_helps_a_model_that_uses_it() -> None:
    """A tiny BERT with a long table of positions, trained on nothing, cannot; so this looks at intervals only."""
    model, tokenizer = small_bert(head=True), WordTokenizer(bert=True)
    text = torch.randint(5, WORDS, (400,), generator=torch.Generator().manual_seed(0))
    frame = masked_loss_by_length(model, tokenizer, text, [8, 32, 33], budget=200, batch_tokens=1)
    assert frame["loss"].isna().tolist() == [False, False, True]
    assert frame["note"].tolist() == ["", "", "longest position 32"]
    assert (frame["loss_low"] < frame["loss"])[:2].all()


def test_a_swapped_model_reads_on(bert: nn.Module, minilm_path: Path, tokenizer: Any, book: Tensor) -> None:
    swapped = hf_posswap.swap(BertForMaskedLM.from_pretrained(minilm_path).eval(), "alibi")
    frame = masked_loss_by_length(swapped, tokenizer, book, [64, 600], budget=600)
    assert frame["loss"].notna().all()


def test_what_cannot_be_measured_is_refused(bert: nn.Module, tokenizer: Any, book: Tensor, minilm_path: Path) -> None:
    with pytest.raises(TextTooShortError, match=r"the text has 10 tokens, and length 64 needs at least 62 besides"):
        masked_loss_rows(bert, tokenizer, book[:10], [64])
    with pytest.raises(EvaluationError, match="no room for context"):
        masked_loss_rows(bert, tokenizer, book, [3])
    with pytest.raises(EvaluationError, match="the budget is 0"):
        masked_loss_rows(bert, tokenizer, book, [64], budget=0)
    with pytest.raises(EvaluationError, match="has no language-model head"):
        masked_loss_rows(load_model("demo:bert"), tokenizer, book, [64])
    with pytest.raises(EvaluationError, match="reads from left to right"):
        masked_loss_rows(load_model("demo:gpt2"), tokenizer, book % 4096, [64])
    with pytest.raises(EvaluationError, match="no mask token"):
        masked_loss_rows(bert, load_tokenizer("demo:gpt2"), book, [64])
    with pytest.raises(EvaluationError, match="nothing but special tokens"):
        masked_loss_rows(bert, tokenizer, torch.full((100,), tokenizer.unk_token_id), [64])

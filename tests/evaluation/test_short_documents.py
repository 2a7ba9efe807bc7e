"""Documents shorter than the lengths: read whole, each alone, the same tokens scored at every length."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.evaluation import TextTooShortError
from hf_posswap.evaluation.agreement import embedding_agreement
from hf_posswap.evaluation.masked import masked_loss_rows, plan_masked
from hf_posswap.evaluation.perplexity import perplexity_rows, planned_tokens
from hf_posswap.evaluation.positions import position_rows
from hf_posswap.evaluation.windows import LEAST_DOCUMENTS, PROTOCOLS, USUAL_PROTOCOLS, plan_documents
from tests import proteins
from tests.matrix.cells import random_tokens, small_model

SIZES = [20, 7, 13, 2, 20, 9, 1]


def documents(sizes: list[int]) -> list[Tensor]:
    return [random_tokens(1, size, seed)[0] for seed, size in enumerate(sizes)]


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12), lengths=st.lists(st.integers(2, 60), min_size=1))
def test_windows_stay_inside_documents_and_score_the_same_tokens_at_every_length(
    sizes: list[int], lengths: list[int]
) -> None:
    lengths = [length for length in lengths if length <= max(sizes)]
    if not lengths:
        return
    for protocol in PROTOCOLS:
        plans = plan_documents(protocol, sizes, lengths, 10_000)
        scored = {}
        for length, found in plans.items():
            windows = [(place, window) for place, own in found for window in own]
            assert all(0 <= w.start < w.first_target < w.stop <= sizes[place] for place, w in windows)
            assert all(w.size <= length for _, w in windows)
            scored[length] = [
                (place, token)
                for place, w in windows
                for token in range(w.first_target, w.stop)
                if sizes[place] < max(lengths)  # longer ones are read in parts, see test_windows.py
            ]
            assert len(set(scored[length])) == len(scored[length])
            if protocol != "same-targets":
                read = {place for place, tokens in enumerate(sizes) if 2 <= tokens < max(lengths)}
                assert {place for place, _ in scored[length]} == read
        if protocol == "same-targets":
            assert all(tokens == scored[lengths[0]] for tokens in scored.values())


def test_a_document_shorter_than_a_length_counts_with_the_loss_it_has_alone() -> None:
    model, texts = small_model("gpt2", True).requires_grad_(False), documents(SIZES)
    row = perplexity_rows(model, texts, [20], ("windows",), budget=1000)[0]
    losses = []
    for ids in texts:
        logits = model(ids[None]).logits[0, :-1]
        losses.append(F.cross_entropy(logits, ids[1:], reduction="sum"))
    assert row.tokens == sum(size - 1 for size in SIZES)
    assert row.windows == sum(size > 1 for size in SIZES)
    assert row.loss == pytest.approx(float(sum(losses)) / row.tokens, abs=1e-5)
    by_position = position_rows(model, texts, [20], budget=1000)
    assert sum(part.tokens for part in by_position) == row.tokens
    assert sum(part.loss * part.tokens for part in by_position) / row.tokens == pytest.approx(row.loss, abs=1e-9)


def test_glued_together_the_same_texts_have_another_loss() -> None:
    """What reading a file of lines as one text would measure."""
    model, texts = small_model("gpt2", True), documents(SIZES)
    apart, glued = (perplexity_rows(model, ids, [20], ("windows",), budget=999) for ids in (texts, torch.cat(texts)))
    assert abs(apart[0].loss - glued[0].loss) > 1e-3


def test_the_budget_holds_for_many_documents_and_they_are_evenly_spread() -> None:
    sizes = [100] * 1500
    for protocol in USUAL_PROTOCOLS:
        found = plan_documents(protocol, sizes, [32, 64], 6400)[64]
        assert [place for place, _ in found] == list(range(0, 1500, 15))
        assert planned_tokens(sizes, [64], protocol, 6400) == 6400
    assert len(plan_documents("windows", sizes, [64], 10)[64]) == LEAST_DOCUMENTS


def test_a_length_that_no_document_has_is_refused() -> None:
    with pytest.raises(TextTooShortError, match="the longest of 3 documents has 9 tokens, and length 16 needs"):
        plan_documents("windows", [9, 3, 5], [16], 100)
    with pytest.raises(TextTooShortError, match=r"has 9 tokens, and length 16 needs at least 14 besides the 2 special"):
        plan_masked(proteins.tokenizer(), documents([9, 3]), [16], 100, 0)


def test_masked_tokens_of_short_documents_are_read_in_their_document_alone() -> None:
    tokenizer, model = proteins.tokenizer(), proteins.model()
    texts = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in proteins.sequences(9)]
    lengths = [20, max(map(len, texts)) + 2]
    plans = plan_masked(tokenizer, texts, lengths, 10_000, 0)
    whole = plans[lengths[1]]
    assert len(whole) == len(texts)
    for window, text in zip(whole, texts, strict=True):
        shown = window.ids.clone()
        shown[window.places] = window.targets
        assert shown.tolist() == [tokenizer.cls_token_id, *text.tolist(), tokenizer.sep_token_id]
    assert sum(len(w.places) for w in plans[20]) == sum(len(w.places) for w in whole)
    rows = masked_loss_rows(model, tokenizer, texts, lengths, budget=10_000)
    with torch.no_grad():
        losses = [F.cross_entropy(model(w.ids[None]).logits[0, w.places], w.targets, reduction="none") for w in whole]
    assert rows[1].loss == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)


def test_a_document_without_anything_to_mask_is_passed_over() -> None:
    tokenizer = proteins.tokenizer()
    special = torch.full((12,), tokenizer.unk_token_id)
    plans = plan_masked(tokenizer, [special, torch.arange(5, 20)], [12], 100, 0)
    assert [window.targets.min().item() >= 5 for window in plans[12]] == [True] * len(plans[12])


def test_embeddings_of_short_documents_are_compared_whole() -> None:
    model = small_model("bert", False).base_model
    texts = documents([4, 9, 5])
    rows: list[Any] = embedding_agreement(model, model, texts, [8, 11], [1], [2])
    assert [(row.length, row.texts) for row in rows] == [(8, 3), (11, 3)]
    assert [row.cosine for row in rows] == pytest.approx([1.0, 1.0], abs=1e-6)
    (gap,) = embedding_agreement(model, model, texts, [12], [1], [2])
    assert (gap.cosine, gap.note) == (None, "the longest text has 9 tokens, without special tokens")

"""How far embeddings agree with the stock model's, on small models."""

import pytest
import torch
from torch.nn import functional as F

import hf_posswap
from hf_posswap.evaluation import agreement
from hf_posswap.evaluation.agreement import embedding_agreement
from tests.matrix.cells import TRAIN_LENGTH, random_tokens, small_model

FRAME = ([1], [2])


def test_a_model_agrees_with_itself_where_the_stock_model_reads() -> None:
    stock = small_model("bert", False).base_model
    text = random_tokens(1, 5 * TRAIN_LENGTH)[0]
    rows = embedding_agreement(stock, stock, [text], [2 * TRAIN_LENGTH, 8, TRAIN_LENGTH], *FRAME)
    assert [row.length for row in rows] == [8, TRAIN_LENGTH, 2 * TRAIN_LENGTH]
    assert [row.texts for row in rows] == [len(text) // 6, len(text) // (TRAIN_LENGTH - 2), 0]
    assert [row.cosine for row in rows[:2]] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert rows[2].cosine is None
    assert f"the stock model reads {TRAIN_LENGTH} tokens" in rows[2].note


@pytest.mark.parametrize("at_once", [1, 14, 4096])
def test_the_mean_and_the_lowest_cosine_are_of_all_texts(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "TOKENS_AT_ONCE", at_once)
    stock = small_model("bert", False).base_model
    model = hf_posswap.swap(small_model("bert", False).base_model, "rope")
    text = random_tokens(1, 20)[0]
    (row,) = embedding_agreement(model, stock, [text], [7], *FRAME)
    with torch.no_grad():
        framed = torch.stack([torch.tensor([1, *text[start : start + 5].tolist(), 2]) for start in range(0, 20, 5)])
        mine, theirs = (m(framed).last_hidden_state.mean(1) for m in (model, stock))
    cosines = F.cosine_similarity(mine, theirs)
    assert row.texts == 4
    assert row.cosine == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert row.lowest == pytest.approx(float(cosines.min()), abs=1e-5)


def test_a_text_shorter_than_the_length_is_a_gap() -> None:
    stock = small_model("bert", False).base_model
    (row,) = embedding_agreement(stock, stock, [random_tokens(1, 4)[0]], [8], *FRAME)
    assert (row.cosine, row.texts, row.note) == (None, 0, "the longest text has 4 tokens, without special tokens")

"""Retrieval on long documents: the collection, the metrics, and that reading more of a document finds more."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from hf_posswap.evaluation import EvaluationError, TextTooShortError, retrieval
from hf_posswap.evaluation.collection import METRICS, Collection, make_collection
from hf_posswap.evaluation.document_retrieval import RetrievalTask, retrieval_rows
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.texts.sources import resolve_texts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("demo:bert")


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    return load_model("demo:bert")


@pytest.fixture(scope="module")
def book() -> str:
    return resolve_texts("demo:book/test")[0].read()[5000:21_000]


def test_queries_come_from_deep_inside_their_document(tokenizer: Any, book: str) -> None:
    collection = make_collection(tokenizer, [book], 256, most=100, seed=0)
    assert {len(document) for document in collection.documents} == {254}
    assert collection.deeper_than == 127
    assert len(collection.queries) > 2 * len(collection.documents)
    for query, answer in zip(collection.queries, collection.answers, strict=True):
        holders = [
            (number, place)
            for number, document in enumerate(collection.documents)
            for place in _places(document, query)
        ]
        assert [number for number, _ in holders] == [answer], "in its own document, and in no other"
        assert holders[0][1] >= 127


def _places(document: torch.Tensor, query: torch.Tensor) -> list[int]:
    windows = document.unfold(0, len(query), 1) if len(document) >= len(query) else document.new_empty(0, len(query))
    return (windows == query).all(1).nonzero().flatten().tolist()


def test_seeds_draw_the_queries(tokenizer: Any, book: str) -> None:
    one, same, other = (make_collection(tokenizer, [book], 256, 20, seed).queries for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(len(a) != len(b) or not torch.equal(a, b) for a, b in zip(one, other, strict=False))


def test_reading_more_of_a_document_finds_more(bert: nn.Module, tokenizer: Any, book: str) -> None:
    """A query's sentence is beyond the first 127 tokens: a model that reads 64 can only know what the text is about."""
    frame = retrieval(bert, tokenizer, [book], [64, 256, 513], document_tokens=256)
    values = {(row.length, row.metric): row for row in frame.itertuples()}
    assert values[256, "recall@1"].value > values[64, "recall@1"].value + 0.2
    assert values[256, "ndcg@10"].low < values[256, "ndcg@10"].value < values[256, "ndcg@10"].high
    assert values[256, "ndcg@10"].queries >= 20
    assert math.isnan(values[513, "ndcg@10"].value)
    assert values[513, "recall@10"].note == "longest position 512"


def test_how_much_is_read_at_once_changes_nothing(bert: nn.Module, tokenizer: Any, book: str) -> None:
    usual, single, some = (
        retrieval_rows(bert, tokenizer, [book[:8000]], [128], document_tokens=128, batch_tokens=batch_tokens)
        for batch_tokens in (4096, 1, 700)
    )
    assert single == usual
    assert some == usual


def test_metrics_follow_from_ranks(tokenizer: Any) -> None:
    """Twelve documents; the right one comes first, third, and last behind documents that score the same."""
    collection = Collection([torch.tensor([1])] * 12, [torch.tensor([1])] * 3, [0, 1, 2], 0)
    scores = torch.zeros(3, 12)
    scores[0, 0] = 1
    scores[1, [1, 5, 6]] = torch.tensor([1.0, 2.0, 3.0])
    rows = {row.metric: row for row in RetrievalTask(tokenizer, collection, "mean", 0)._score(8, scores)}
    assert rows["recall@1"].value == pytest.approx(1 / 3)
    assert rows["recall@10"].value == pytest.approx(2 / 3)
    assert rows["ndcg@10"].value == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert collection.chance["recall@10"] == pytest.approx(10 / 12)
    assert collection.chance["ndcg@10"] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in range(1, 11)) / 12)


def test_a_length_without_room_is_a_stated_gap(bert: nn.Module, tokenizer: Any, book: str) -> None:
    rows = retrieval_rows(bert, tokenizer, [book[:8000]], [2], document_tokens=128)
    assert [(row.metric, row.value, row.note) for row in rows] == [
        (metric, None, "no room between the special tokens") for metric in METRICS
    ]


def test_pooling_by_the_first_token_embeds_otherwise(bert: nn.Module, tokenizer: Any, book: str) -> None:
    text = book[:8000]
    mean, first = (
        retrieval_rows(bert, tokenizer, [text], [128], document_tokens=128, pooling=pooling)
        for pooling in ("mean", "first")
    )
    assert mean != first


def test_what_cannot_be_measured_is_refused(bert: nn.Module, tokenizer: Any, book: str) -> None:
    with pytest.raises(TextTooShortError, match=r"the texts have \d+ tokens, and make 2 documents of 512 tokens"):
        retrieval_rows(bert, tokenizer, [book[:6000]], [512])
    with pytest.raises(EvaluationError, match="retrieval among 10 documents says nothing"):
        retrieval_rows(bert, tokenizer, [book], [256], most_documents=10)
    with pytest.raises(EvaluationError, match=r"unknown pooling 'max'. Allowed: mean, first"):
        retrieval_rows(bert, tokenizer, [book], [256], pooling="max")
    with pytest.raises(EvaluationError, match="documents of 3 tokens are too short"):
        retrieval_rows(bert, tokenizer, [book], [3])
    with pytest.raises(TextTooShortError, match="no document has a sentence of 8 to 40 words"):
        retrieval_rows(bert, tokenizer, ["word " * 5000], [256])

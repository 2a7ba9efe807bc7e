"""Retrieval of needles by encoders: the documents, and what an encoder finds that has a known answer."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig

from hf_posswap.evaluation.collection import Collection
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.needle_retrieval import TASKS, NeedleTask, needle_rows
from hf_posswap.evaluation.run import prepare_evaluation, run_evaluation
from hf_posswap.evaluation.settings import EvaluationSettings
from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.results.groups import read_results
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.texts.sources import resolve_texts

DOCUMENTS = 12


@pytest.fixture(scope="module")
def book() -> str:
    return resolve_texts("demo:book/test")[0].read()[:40_000]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("demo:bert")


class Bag(nn.Module):
    """An encoder whose hidden states are the tokens themselves: the cosine counts the tokens that texts share.

    Args:
        rare: tokens that count; of others it knows nothing.
        sees: how many tokens at the beginning of a text it reads.
    """

    def __init__(self, rare: set[int], vocabulary: int, sees: int = 10_000) -> None:
        super().__init__()
        self.config = BertConfig(vocab_size=vocabulary, max_position_embeddings=512)
        self.embedding = nn.Embedding(vocabulary, 1)
        self.rare, self.sees = torch.tensor(sorted(rare)), sees

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        seen = (input_ids[..., None] == self.rare) & (torch.arange(input_ids.shape[1]) < self.sees)[:, None]
        return SimpleNamespace(last_hidden_state=seen.float() + 1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_document_is_as_long_as_the_length_and_only_one_answers_a_query(task: str, book: str, tokenizer: Any) -> None:
    made = NeedleTask(tokenizer, [book], DOCUMENTS, "mean", 0)
    collection = made.collection(task, 200)
    assert isinstance(collection, Collection)
    assert [len(document) + 2 for document in collection.documents] == [200] * DOCUMENTS
    assert (len(collection.queries), collection.answers) == (DOCUMENTS // 2, list(range(DOCUMENTS // 2)))
    texts = [tokenizer.decode(document) for document in collection.documents]
    sign = "pass key of" if task == "passkey" else " hid a "
    assert all(text.count(sign) == 1 for text in texts)
    for query, answer in zip(collection.queries, collection.answers, strict=True):
        (name,) = re.findall(r"(?:key of|what did) (\w+ \w+)", tokenizer.decode(query))
        assert [number for number, text in enumerate(texts) if name in text] == [answer]
    again = NeedleTask(tokenizer, [book], DOCUMENTS, "mean", 0).collection(task, 200)
    assert isinstance(again, Collection)
    assert all(torch.equal(one, two) for one, two in zip(collection.documents, again.documents, strict=True))


def test_an_encoder_that_sees_names_finds_every_needle_that_it_reads(book: str, tokenizer: Any) -> None:
    task = NeedleTask(tokenizer, [book], DOCUMENTS, "mean", 0)
    found = [task.collection(name, 200) for name in TASKS]
    queries = [set(query.tolist()) for one in found if isinstance(one, Collection) for query in one.queries]
    rare = set.union(*queries) - set.intersection(*queries) - set(tokenizer("under what did hide a ?").input_ids)
    rare -= set(tokenizer(" ".join(("is the pass key of", book[:40_000]))).input_ids) | {101, 102}
    rows = needle_rows(Bag(rare, len(tokenizer)), tokenizer, [book], [200], documents=DOCUMENTS)
    values = {(row.length, row.task, row.metric): row.value for row in rows}
    passkey = [values[200, "passkey", metric] for metric in ("accuracy", "ndcg@10")]
    assert passkey == [1.0, 1.0]
    blind = needle_rows(Bag(rare, len(tokenizer), sees=1), tokenizer, [book], [200], documents=DOCUMENTS)
    assert {row.value for row in blind} == {0.0}, "equal documents count as not found"
    assert {row.chance for row in rows if row.metric == "accuracy"} == {1 / DOCUMENTS}
    short = needle_rows(Bag(rare, len(tokenizer)), tokenizer, [book], [8], documents=DOCUMENTS)
    assert all(row.note.startswith("a document needs at least") for row in short)


def test_the_metrics_are_those_of_a_plain_ranking(book: str, tokenizer: Any) -> None:
    model: nn.Module = load_model("demo:bert")
    rows = needle_rows(model, tokenizer, [book], [96], documents=DOCUMENTS, seed=3)
    for task in TASKS:
        collection = NeedleTask(tokenizer, [book], DOCUMENTS, "mean", 3).collection(task, 96)
        assert isinstance(collection, Collection)

        def embed(ids: Tensor) -> Tensor:
            whole = torch.cat([torch.tensor([101]), ids, torch.tensor([102])])[None]
            with torch.no_grad():
                return functional.normalize(model(whole).last_hidden_state[0].mean(0), dim=0)

        documents = torch.stack([embed(ids) for ids in collection.documents])
        ranks = []
        for query, answer in zip(collection.queries, collection.answers, strict=True):
            scores = documents @ embed(query)
            ranks.append(1 + int((scores > scores[answer]).sum()))
        expected = {
            "accuracy": sum(rank == 1 for rank in ranks) / len(ranks),
            "ndcg@10": sum(1 / torch.log2(torch.tensor(1.0 + rank)).item() * (rank <= 10) for rank in ranks)
            / len(ranks),
        }
        for row in rows:
            if row.task == task:
                assert row.value == pytest.approx(expected[row.metric], abs=1e-6)


def test_it_is_measured_where_it_is_named_and_drawn(book: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    shared: dict[str, Any] = {"model": "demo:bert", "texts": (str(tmp_path / "book.txt"),), "most_documents": DOCUMENTS}
    settings = EvaluationSettings(lengths=(64, 600), measurements=("needles",), **shared)
    result = run_evaluation(prepare_evaluation(settings), tmp_path / "out")["needles"]
    assert [row["value"] is None for row in result["rows"]] == [False] * 4 + [True] * 4
    ((_, (figure,)),) = all_figures(read_results(tmp_path / "out"))
    assert [panel.title for panel in figure.panels] == [f"{t}, {m}" for t in TASKS for m in ("accuracy", "ndcg@10")]
    assert figure.gaps == ("stock: nothing at length 600 (longest position 512).",)
    with pytest.raises(EvaluationError, match="retrieval of needles among 5 documents is not possible"):
        prepare_evaluation(
            EvaluationSettings(lengths=(64,), measurements=("needles",), **shared | {"most_documents": 5})
        )

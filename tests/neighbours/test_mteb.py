"""mteb on a swapped sentence-transformer: a retrieval task of this repository's own, on texts of this repository."""

from typing import Any

import pytest
import transformers

from hf_posswap.evaluation.collection import Collection, make_collection
from hf_posswap.evaluation.document_retrieval import RetrievalTask
from hf_posswap.evaluation.reading import Reader
from hf_posswap.evaluation.texts import tokenise
from hf_posswap.texts.sources import resolve_texts
from tests.documents.blocks import blocks_of

pytestmark = [pytest.mark.needs("mteb", "sentence_transformers"), pytest.mark.slow(30)]

LENGTH, DOCUMENTS = 640, 12
"""Tokens that are read of each document, more than the stock model reads; and the number of documents."""


def task_of(**texts: Any) -> Any:
    """Return the task that docs/evaluation.md defines, with the given documents, queries and answers."""
    code = next(block.code for block in blocks_of("docs/evaluation.md") if "AbsTaskRetrieval" in block.code)
    exec(code, texts)
    return texts["LongDocuments"]()


def test_it_finds_as_much_past_512_tokens_as_our_own_measurement(bert_folder: str) -> None:
    import mteb
    from sentence_transformers import SentenceTransformer

    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_folder)
    made = make_collection(tokenizer, [resolve_texts("demo:book/test")[0].read()], LENGTH, DOCUMENTS, seed=0)
    documents, queries = ([tokenizer.decode(ids) for ids in own] for own in (made.documents, made.queries))
    ids = [[tokenise(tokenizer, text) for text in texts] for texts in (documents, queries)]
    assert min(map(len, ids[0])) > 512

    encoder = SentenceTransformer(bert_folder, device="cpu")
    encoder.max_seq_length = LENGTH
    task = task_of(documents=documents, queries=queries, answers=made.answers)
    found = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    scores = found.task_results[0].scores["test"][0]

    with Reader(transformers.AutoModel.from_pretrained(bert_folder)) as reader:
        ours = RetrievalTask(tokenizer, Collection(*ids, made.answers, 0), "mean", seed=0).measure(reader, LENGTH)
    expected = {row.metric: row.value for row in ours}
    measured = {"ndcg@10": scores["ndcg_at_10"], "recall@1": scores["recall_at_1"], "recall@10": scores["recall_at_10"]}
    assert measured == pytest.approx(expected, abs=5.001e-6)  # mteb rounds to five digits
    assert made.chance["ndcg@10"] + 0.1 < expected["ndcg@10"] < 1

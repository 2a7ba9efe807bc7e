"""Documents made of long texts, with queries whose answers require reading beyond a document's beginning.

Texts are cut into documents of one length. A query is a sentence of a document from beyond its first 512 tokens, at
which encoders usually truncate.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_posswap.evaluation.errors import EvaluationError, TextTooShortError
from hf_posswap.swapped.tokenizers import special_tokens

TRUNCATION = 512
"""Tokens of a document that encoders usually read; queries come from after them."""
LEAST_DOCUMENTS = 11
"""Minimum number of documents; with fewer, every document would be among the best ten."""
QUERIES_PER_DOCUMENT = 4
WORDS_OF_A_QUERY = range(8, 41)
SENTENCE_END = r"(?<=[.!?])[\"'”’)]*\s+|(?<=[。！？])[」』”’）]*"
METRICS = ("ndcg@10", "recall@1", "recall@10")


@dataclass(frozen=True)
class Collection:
    """Documents, and queries with their documents.

    Attributes:
        documents: token ids without special tokens, int64 (n,), all of one length.
        queries: token ids without special tokens, int64 (n,).
        answers: index of each query's document.
        deeper_than: minimum number of tokens in the document before a query.
    """

    documents: list[Tensor]
    queries: list[Tensor]
    answers: list[int]
    deeper_than: int

    @property
    def chance(self) -> dict[str, float]:
        """The expected value of each metric for a random order."""
        return chance_of(len(self.documents))


def chance_of(documents: int) -> dict[str, float]:
    """Return the expected value of each metric for a random order of so many documents, one of which is right."""
    gain = sum(1 / math.log2(1 + rank) for rank in range(1, 11))
    return {metric: value / documents for metric, value in zip(METRICS, (gain, 1.0, 10.0), strict=True)}


def make_collection(
    tokenizer: Any,
    texts: Sequence[str],
    document_tokens: int,
    most: int,
    seed: int,
    per_document: int = QUERIES_PER_DOCUMENT,
) -> Collection:
    """Cut texts into documents of equal length, and draw queries from beyond their first tokens.

    Args:
        tokenizer: the model's tokenizer.
        texts: long texts.
        document_tokens: tokens of a document, special tokens included.
        most: maximum number of documents, evenly spread over the texts.
        seed: seed of the queries.
        per_document: maximum number of queries from each document.

    Raises:
        EvaluationError: `most` is too small.
        TextTooShortError: the texts give too few documents, or have no sentences that could be queries.
    """
    if most < LEAST_DOCUMENTS:
        raise EvaluationError(
            f"retrieval among {most} documents says nothing: with fewer than {LEAST_DOCUMENTS}, every document is "
            f"among the best ten. Give at least {LEAST_DOCUMENTS} documents."
        )
    first, last = special_tokens(tokenizer)
    inner = document_tokens - len(first) - len(last)
    if inner < 2:
        raise EvaluationError(
            f"documents of {document_tokens} tokens are too short. Give at least {len(first + last) + 2}."
        )
    cut, total = [], 0
    for text in texts:
        sentences = _sentences(tokenizer, text)
        total += sum(len(ids) for _, ids in sentences)
        cut += list(_documents(sentences, inner))
    if len(cut) < LEAST_DOCUMENTS:
        raise TextTooShortError(
            f"the texts have {total} tokens, and make {len(cut)} documents of {document_tokens} tokens; retrieval "
            f"needs at least {LEAST_DOCUMENTS} documents, about {LEAST_DOCUMENTS * inner} tokens. Give more text, or "
            "shorter documents (document_tokens, --document-tokens)."
        )
    kept = [cut[number * len(cut) // most] for number in range(most)] if len(cut) > most else cut
    deeper_than = min(TRUNCATION, inner // 2)
    return _with_queries(kept, deeper_than, per_document, random.Random(seed))


_Sentence = tuple[str, list[int]]


@dataclass(frozen=True)
class _Document:
    """A document, and its complete sentences with the number of tokens before each."""

    ids: Tensor
    sentences: list[tuple[int, _Sentence]]


def _sentences(tokenizer: Any, text: str) -> list[_Sentence]:
    """Split a text into sentences, with their token ids."""
    parts = [part for part in re.split(SENTENCE_END, text) if part.strip()]
    ids = tokenizer(parts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return [(" ".join(part.split()), list(of_part)) for part, of_part in zip(parts, ids, strict=True)]


def _documents(sentences: Sequence[_Sentence], inner: int) -> Iterator[_Document]:
    """Fill documents with successive sentences; a sentence that does not fit continues in the next document."""
    ids: list[int] = []
    inside: list[tuple[int, _Sentence]] = []
    for sentence in sentences:
        if len(ids) + len(sentence[1]) <= inner:
            inside.append((len(ids), sentence))
        ids += sentence[1]
        while len(ids) >= inner:
            yield _Document(torch.tensor(ids[:inner]), inside)
            ids, inside = ids[inner:], []


def _with_queries(documents: Sequence[_Document], deeper_than: int, each: int, chance: random.Random) -> Collection:
    """Draw sentences of medium length that occur once and start after at least `deeper_than` tokens."""
    seen: dict[str, int] = {}
    for document in documents:
        for _, (text, _) in document.sentences:
            seen[text] = seen.get(text, 0) + 1
    queries, answers = [], []
    for number, document in enumerate(documents):
        fitting = [
            ids
            for before, (text, ids) in document.sentences
            if before >= deeper_than and len(text.split()) in WORDS_OF_A_QUERY and seen[text] == 1
        ]
        drawn = chance.sample(fitting, min(each, len(fitting)))
        queries += [torch.tensor(ids) for ids in drawn]
        answers += [number] * len(drawn)
    if not queries:
        raise TextTooShortError(
            f"no document has a sentence of {WORDS_OF_A_QUERY.start} to {WORDS_OF_A_QUERY.stop - 1} words beyond its "
            f"first {deeper_than} tokens that occurs once. Give prose with sentences, or longer documents."
        )
    return Collection([document.ids for document in documents], queries, answers, deeper_than)

"""Retrieval on long documents, by the number of tokens that an encoder reads of each document.

The model reads only the first tokens of each document. It embeds documents and queries as the mean of their last hidden
states. Documents are ranked by their cosine to the query; the query's own document is the only correct one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.bootstrap import interval_of_mean
from hf_posswap.evaluation.collection import METRICS, Collection, make_collection
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.settings import MOST_DOCUMENTS, POOLINGS
from hf_posswap.evaluation.token_loss import last_hidden
from hf_posswap.evaluation.windows import check_lengths
from hf_posswap.swapped.tokenizers import special_tokens


@dataclass(frozen=True)
class RetrievalRow:
    """One metric at one length.

    Attributes:
        length: tokens read of each document, special tokens included.
        metric: "ndcg@10", "recall@1" or "recall@10".
        value: mean over the queries; None if it could not be measured, see `note`.
        low: lower end of the 95% bootstrap interval over documents.
        high: upper end of that interval.
        queries: number of queries.
        note: reason why `value` is missing, otherwise empty.
    """

    length: int
    metric: str
    value: float | None
    low: float | None
    high: float | None
    queries: int
    note: str = ""


def retrieval_rows(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    document_tokens: int | None = None,
    most_documents: int = MOST_DOCUMENTS,
    pooling: str = "mean",
    seed: int = 0,
    batch_tokens: int = 4096,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> list[RetrievalRow]:
    """Measure how well an encoder finds the document of a sentence, by the number of tokens read of each document.

    Args:
        model: an encoder, swapped or stock, with a head or without. It is measured in evaluation mode.
        tokenizer: the model's tokenizer.
        texts: long texts, such as books.
        lengths: tokens to read of each document, special tokens included; include 512 to measure the usual truncation.
        document_tokens: tokens of a document; None: the longest length.
        most_documents: maximum number of documents.
        pooling: "mean" of the last hidden states, or the "first" token's, as the model was trained.
        seed: seed of the queries and of the bootstrap.
        batch_tokens: maximum tokens of one forward pass; a longer document is a batch of its own.
        processes: the processes that share the work (`joined_processes()` yields them under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        For each length, in ascending order, a row for each metric. A length beyond the model's longest position has
        rows without a value, with the reason in their note.

    Raises:
        EvaluationError: an invalid length, pooling or number of documents.
        TextTooShortError: the texts give too few documents.
    """
    ordered = check_lengths(lengths)
    collection = make_collection(tokenizer, texts, document_tokens or ordered[-1], most_documents, seed)
    task = RetrievalTask(tokenizer, collection, pooling, seed)
    with Reader(model, batch_tokens=batch_tokens, processes=processes, progress=progress) as reader:
        return [row for length in ordered for row in task.measure(reader, length)]


class RetrievalTask:
    """A collection of documents and the settings of its measurement.

    Args:
        tokenizer: the model's tokenizer.
        collection: documents and queries.
        pooling: "mean" or "first".
        seed: seed of the bootstrap.

    Raises:
        EvaluationError: an unknown pooling.
    """

    def __init__(self, tokenizer: Any, collection: Collection, pooling: str, seed: int) -> None:
        if pooling not in POOLINGS:
            raise EvaluationError(f"unknown pooling {pooling!r}. Allowed: {', '.join(POOLINGS)}.")
        self.collection, self.pooling, self.seed = collection, pooling, seed
        self.first, self.last = (torch.tensor(ids, dtype=torch.int64) for ids in special_tokens(tokenizer))

    def tokens(self, length: int) -> int:
        """Return the number of tokens read at a length, for progress bars."""
        around = len(self.first) + len(self.last)
        read = sum(min(length, len(document) + around) for document in self.collection.documents)
        return read + sum(len(query) + around for query in self.collection.queries)

    def measure(self, reader: Reader, length: int) -> list[RetrievalRow]:
        """Measure every metric at one length."""
        inner = length - len(self.first) - len(self.last)
        if inner < 1:
            return gap_rows(length, "no room between the special tokens")
        try:
            reader.require_length(length)
            documents = self._embed(reader, [document[:inner] for document in self.collection.documents])
            queries = self._embed(reader, self.collection.queries)
        except PositionError as error:
            return gap_rows(length, str(error))
        if not bool(torch.isfinite(documents).all() and torch.isfinite(queries).all()):
            return gap_rows(length, "embeddings are not finite")
        return self._score(length, queries @ documents.t())

    def _embed(self, reader: Reader, parts: Sequence[Tensor]) -> Tensor:
        """Return normalised embeddings, float32 (n, D) on the CPU; a batch holds texts of equal length only."""
        base = getattr(reader.model, "base_model", reader.model)

        around = len(self.first) + len(self.last)

        def embed(batch: list[Tensor]) -> list[Tensor]:
            ids = torch.stack([torch.cat([self.first, part, self.last]) for part in batch]).to(reader.device)
            hidden = last_hidden(base, ids)
            reader.was_read(ids)
            pooled = hidden.float().mean(1) if self.pooling == "mean" else hidden[:, 0].float()
            return list(functional.normalize(pooled, dim=-1).cpu())

        return torch.stack(reader.read_alike(parts, lambda part: (len(part) + around,), embed))

    def _score(self, length: int, scores: Tensor) -> list[RetrievalRow]:
        """Return the rows for scores (queries, documents)."""
        answers = torch.tensor(self.collection.answers)
        own = scores.gather(1, answers.unsqueeze(1))
        # Rank the right document after others with the same score, so that equal embeddings count as not found.
        ranks = ((scores >= own).sum(1)).tolist()
        values = {
            "ndcg@10": [1 / math.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks],
            "recall@1": [float(rank <= 1) for rank in ranks],
            "recall@10": [float(rank <= 10) for rank in ranks],
        }
        return [self._row(length, metric, values[metric]) for metric in METRICS]

    def _row(self, length: int, metric: str, values: Sequence[float]) -> RetrievalRow:
        numbers = sorted(set(self.collection.answers))
        grouped = [
            [value for value, answer in zip(values, self.collection.answers, strict=True) if answer == number]
            for number in numbers
        ]
        bounds = interval_of_mean([sum(group) for group in grouped], [len(group) for group in grouped], self.seed)
        low, high = bounds or (None, None)
        return RetrievalRow(length, metric, math.fsum(values) / len(values), low, high, len(values))


def gap_rows(length: int, note: str) -> list[RetrievalRow]:
    """Return the rows of a length that was not measured, with the reason."""
    return [RetrievalRow(length, metric, None, None, None, 0, note) for metric in METRICS]

"""Needle and pass-key retrieval for encoders, as in LongEmbed (Zhu et al., 2404.12096), generated and offline.

Each document of a task is as long as the length and hides one sentence about one person at a random depth: a pass key
among repeated sentences, or a fact in a book. A query asks for what is said of one person; the document that says it is
the only right one. Documents are ranked by their cosine to the query. The document fits into the length, so the
measurement shows whether an encoder still finds a sentence among ever more text, not the cost of truncation.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hf_posswap.evaluation.collection import LEAST_DOCUMENTS, Collection, chance_of
from hf_posswap.evaluation.document_retrieval import RetrievalTask
from hf_posswap.evaluation.errors import EvaluationError, UnmeasurableError
from hf_posswap.evaluation.passkey_retrieval import FILLER
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.settings import MOST_DOCUMENTS
from hf_posswap.evaluation.texts import tokenise
from hf_posswap.evaluation.windows import check_lengths
from hf_posswap.swapped.tokenizers import special_tokens

FIRST_NAMES = (
    *("Ada", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Leo"),
    *("Maria", "Nils", "Olga", "Paul", "Rosa", "Simon", "Tilda", "Victor"),
)
LAST_NAMES = (
    *("Adler", "Brook", "Carter", "Dahl", "Ebner", "Fisher", "Gruber", "Hill", "Ivers", "Jensen", "Keller", "Lind"),
    *("Mason", "Novak", "Olsen", "Porter", "Quinn", "Reed", "Stone", "Turner"),
)
THINGS = ("compass", "violin", "lantern", "map", "ring", "clock", "letter", "key", "sword", "coin")
PLACES = ("an oak", "a bridge", "a mill", "a stable", "a well", "a chapel", "a tower", "a stair", "a boat", "a wall")
TASKS = {
    "passkey": (" The pass key of {name} is {number}. Remember it.", "What is the pass key of {name}?"),
    "needle": (" {name} hid a {thing} under {place}.", "Under what did {name} hide a {thing}?"),
}
"""The hidden sentence and the query of each task."""
METRICS = {"recall@1": "accuracy", "ndcg@10": "ndcg@10"}
"""The metrics of retrieval that are reported, with the names that they have here."""
QUERIES_PER_DOCUMENT = 0.5
"""Half of the documents are asked for; the others only distract, as in the suite."""


@dataclass(frozen=True)
class NeedleRow:
    """One metric of one task at one length.

    Attributes:
        length: tokens of each document, special tokens included.
        task: "passkey" or "needle".
        metric: "accuracy", the share of queries whose document is ranked first, or "ndcg@10".
        value: mean over the queries; None if it could not be measured, see `note`.
        low: lower end of the 95% bootstrap interval over queries.
        high: upper end of that interval.
        queries: number of queries.
        chance: the expected value for a random order.
        note: reason why `value` is missing, otherwise empty.
    """

    length: int
    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    queries: int
    chance: float
    note: str = ""


def needle_rows(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    documents: int = MOST_DOCUMENTS,
    pooling: str = "mean",
    seed: int = 0,
    batch_tokens: int = 4096,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> list[NeedleRow]:
    """Measure how well an encoder finds the document that hides a sentence, by the length of the documents.

    Args:
        model: an encoder, swapped or stock, with a head or without. It is measured in evaluation mode.
        tokenizer: the model's tokenizer.
        texts: long texts, such as books, which the facts are hidden in.
        lengths: tokens of each document, special tokens included.
        documents: number of documents of each task.
        pooling: "mean" of the last hidden states, or the "first" token's, as the model was trained.
        seed: seed of the documents and of the bootstrap.
        batch_tokens: maximum tokens of one forward pass; a longer document is a batch of its own.
        processes: the processes that share the work (`joined_processes()` yields them under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        For each length, in ascending order, a row for each task and metric. A length beyond the model's longest
        position, or too short for the hidden sentence, has rows without a value, with the reason in their note.

    Raises:
        EvaluationError: an invalid length, pooling or number of documents, or texts that are too short.
    """
    task = NeedleTask(tokenizer, texts, documents, pooling, seed)
    with Reader(model, batch_tokens=batch_tokens, processes=processes, progress=progress) as reader:
        return [row for length in check_lengths(lengths) for row in task.measure(reader, length)]


class NeedleTask:
    """The documents and queries of a measurement.

    Args:
        tokenizer: the model's tokenizer.
        texts: long texts.
        documents: number of documents of each task.
        pooling: "mean" or "first".
        seed: seed of the documents and of the bootstrap.

    Raises:
        EvaluationError: an unknown pooling, too few or too many documents, or texts without a token.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], documents: int, pooling: str, seed: int) -> None:
        most = len(FIRST_NAMES) * len(LAST_NAMES)
        if not LEAST_DOCUMENTS <= documents <= most:
            raise EvaluationError(
                f"retrieval of needles among {documents} documents is not possible: fewer than {LEAST_DOCUMENTS} say "
                f"nothing, and there are names for {most}. Give a number from {LEAST_DOCUMENTS} to {most}."
            )
        self.tokenizer, self.documents, self.pooling, self.seed = tokenizer, documents, pooling, seed
        self.around = sum(map(len, special_tokens(tokenizer)))
        self.book = [token for text in texts for token in tokenise(tokenizer, text).tolist()]
        self.filler = tokenise(tokenizer, "".join(FILLER)).tolist()
        if not self.book or not self.filler:
            raise UnmeasurableError(
                "the texts have no token of this tokenizer, so there is nothing to hide a needle in."
            )

    def tokens(self, length: int) -> int:
        """Return about the number of tokens read at a length, for progress bars."""
        return len(TASKS) * self.documents * length

    def measure(self, reader: Reader, length: int) -> list[NeedleRow]:
        """Measure every task at one length."""
        rows = []
        for task in TASKS:
            collection = self.collection(task, length)
            if isinstance(collection, int):
                rows += gap_rows(self.documents, length, f"a document needs at least {collection} tokens", (task,))
                continue
            found = RetrievalTask(self.tokenizer, collection, self.pooling, self.seed).measure(reader, length)
            by_metric = {row.metric: asdict(row) for row in found}
            rows += [
                NeedleRow(**by_metric[metric] | {"task": task, "metric": name, "chance": collection.chance[metric]})
                for metric, name in METRICS.items()
            ]
        return rows

    def collection(self, task: str, length: int) -> Collection | int:
        """Return the documents and queries of a task, or how many tokens a document needs if they do not fit."""
        sentence, question = TASKS[task]
        names = [f"{first} {last}" for first, last in itertools.product(FIRST_NAMES, LAST_NAMES)]
        chance = random.Random(f"{self.seed} {task}")
        drawn = chance.sample(names, self.documents)
        facts = [
            {
                "name": name,
                "number": f"{chance.randrange(10**5):05d}",
                "thing": chance.choice(THINGS),
                "place": chance.choice(PLACES),
            }
            for name in drawn
        ]
        hidden = [tokenise(self.tokenizer, sentence.format(**fact)).tolist() for fact in facts]
        needed = max(map(len, hidden)) + self.around
        if length < needed:
            return needed
        documents = []
        for needle in hidden:
            room, depth, start = length - self.around - len(needle), chance.random(), chance.random()
            filler = self._filler(task, room, start)
            place = round(depth * room)
            documents.append(torch.tensor([*filler[:place], *needle, *filler[place:]]))
        asked = range(max(1, round(QUERIES_PER_DOCUMENT * self.documents)))
        queries = [tokenise(self.tokenizer, question.format(**facts[number])) for number in asked]
        return Collection(documents, queries, list(asked), 0)

    def _filler(self, task: str, room: int, start: float) -> list[int]:
        """Return `room` tokens: repeated sentences, or a book from somewhere on and again from its beginning."""
        source = self.filler if task == "passkey" else self.book
        first = 0 if task == "passkey" else int(start * len(source))
        return list(itertools.islice(itertools.cycle([*source[first:], *source[:first]]), room))


def gap_rows(documents: int, length: int, note: str, tasks: Sequence[str] = tuple(TASKS)) -> list[NeedleRow]:
    """Return the rows of a length that was not measured, with the reason."""
    chance = chance_of(documents)
    return [
        NeedleRow(length, task, name, None, None, None, 0, chance[metric], note)
        for task in tasks
        for metric, name in METRICS.items()
    ]

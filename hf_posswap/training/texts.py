"""Turns documents into windows of tokens, in an order that depends on the seed only, holding one document at a time."""

import itertools
import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_posswap.swapped.tokenizers import special_tokens
from hf_posswap.training.options import HealingError

Documents = Iterable[str | Mapping[str, Any]]
"""Texts, or mappings with a column of texts; iterated once per pass."""
SHUFFLED_TOKENS = 2**22
"""Tokens of the shuffle buffer: a larger text is shuffled locally and never held in memory as a whole."""
SAMPLED_WINDOWS = 512
"""Number of windows from which the mean length is estimated."""
SAMPLED_DOCUMENTS = 512
"""Number of documents from which the lengths of all documents are estimated."""


@dataclass(frozen=True)
class Window:
    """Tokens of one sequence.

    Attributes:
        ids: token ids.
        positions: the position of each token in its document, counted from the window's start.
    """

    ids: list[int]
    positions: list[int]


class Windows:
    """An endless stream of windows from repeated passes over the documents, each pass in another order.

    Args:
        documents: texts, or mappings with a column of texts (such as a `datasets` dataset, streaming or not). They are
            iterated once per pass, so an iterator that can be read only once does not work.
        tokenizer: a transformers tokenizer.
        length: tokens of a window.
        packing: fill windows with several documents, with an end-of-text token between them. Otherwise each document is
            cut into windows, each inside the tokenizer's special tokens if it has any; the last one may be shorter.
        seed: seed of the order.
        column: the column with the texts.

    Raises (on iteration):
        HealingError: no documents, empty ones only, or less text than one window.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Any,
        length: int,
        packing: bool,
        seed: int = 0,
        column: str = "text",
    ) -> None:
        if isinstance(documents, Iterator):
            raise HealingError(
                "the documents are an iterator that ends after one pass. Give a list, a datasets dataset, or any "
                "object whose __iter__ starts anew."
            )
        if isinstance(documents, Mapping):
            raise HealingError(
                f"the documents are a {type(documents).__name__} with the keys {', '.join(map(str, documents))}: these "
                "would be read as texts. Give the texts, that is the value of one of the keys."
            )
        if not hasattr(documents, "__iter__") and not hasattr(documents, "__getitem__"):
            raise HealingError(f"the documents are a {type(documents).__name__}. Give a list of texts or a dataset.")
        if isinstance(documents, str):
            documents = [documents]
        self.documents, self.tokenizer, self.length, self.packing = documents, tokenizer, length, packing
        self.seed, self.column = seed, column

    def __iter__(self) -> Iterator[Window]:
        passes = 0
        while True:
            windows = self._pass()
            empty = True
            chance = random.Random(f"{self.seed}/{passes}")
            for window in _shuffled(windows, chance, max(1, SHUFFLED_TOKENS // self.length)):
                empty = False
                yield window
            if empty:
                raise self._too_short()
            passes += 1

    def first(self, count: int = 1) -> list[Window]:
        """Return up to `count` windows in the documents' order, without reading further.

        Raises:
            HealingError: there is less text than one window.
        """
        windows = list(itertools.islice(self._pass(), count))
        if not windows:
            raise self._too_short()
        return windows

    def document_lengths(self) -> tuple[list[int], int | None]:
        """Return the lengths of a sample of documents (of all if they are few) and their number, if it is known."""
        number = len(self.documents) if isinstance(self.documents, Sized) else None
        return [len(ids) for ids in itertools.islice(self._sample()._tokens(), SAMPLED_DOCUMENTS)], number

    def typical_length(self) -> float:
        """Return the mean length of a sample of windows; less than `length` if documents are short."""
        if self.packing:
            return self.length
        lengths = [len(window.ids) for window in self._sample().first(SAMPLED_WINDOWS)]
        return sum(lengths) / len(lengths)

    def _sample(self) -> "Windows":
        """Return windows of a sample of documents, evenly spaced over all of them if their number is known."""
        documents: Any = self.documents
        indexed = isinstance(documents, Sized) and hasattr(documents, "__getitem__")
        if not indexed or len(documents) <= SAMPLED_DOCUMENTS:
            return self
        places = range(0, len(documents), -(-len(documents) // SAMPLED_DOCUMENTS))
        some = [documents[place] for place in places]
        return Windows(some, self.tokenizer, self.length, self.packing, self.seed, self.column)

    def _pass(self) -> Iterator[Window]:
        return self._packed() if self.packing else self._cut()

    def whole(self) -> Iterator[Tensor]:
        """Yield full windows of one document each, int64 (1, length), in the order of one pass."""
        found = False
        for window in self._pass():
            if len(window.ids) == self.length and window.positions[-1] == self.length - 1:
                found = True
                yield torch.tensor([window.ids])
        if not found:
            raise self._too_short()

    def spread(self, count: int) -> list[Tensor]:
        """Return windows of one document each, int64 (1, L), with about as many tokens as `count` full ones.

        They cover as many documents as possible: the first windows of all documents come first, then the second
        windows, and so on; reading stops as soon as the first windows are enough. A document shorter than a window
        gives one window. The rest at the end of a longer document is dropped.

        Raises:
            HealingError: the documents together have fewer tokens than one window.
        """
        by_document: list[list[Tensor]] = []
        first, last = special_tokens(self.tokenizer)
        wanted, found, least = count * self.length, 0, len(first) + len(last) + 1
        for document in self._tokens():
            cut = list(itertools.islice(self._cut_document(document), count + 1))
            windows = [torch.tensor([ids]) for ids in cut if len(ids) == self.length] or [torch.tensor([cut[0]])]
            if windows[0].shape[1] <= least and self.length > least:
                continue
            by_document.append(windows)
            found += windows[0].numel()
            if found >= wanted:
                break
        in_turn = (window for rank in itertools.zip_longest(*by_document) for window in rank if window is not None)
        windows, read = [], 0
        for window in in_turn:
            if read >= wanted:
                break
            windows.append(window)
            read += window.numel()
        if read < self.length:
            raise self._too_short()
        return windows

    def require_one(self) -> None:
        """Raise a `HealingError` if there is less text than one window."""
        self.first()

    def _texts(self) -> Iterator[str]:
        for document in self.documents:
            if isinstance(document, str):
                yield document
                continue
            if self.column not in document:
                raise HealingError(
                    f"the documents have no column {self.column!r}. Their columns: {', '.join(map(str, document))}."
                )
            text = document[self.column]
            if not isinstance(text, str):
                raise HealingError(
                    f"column {self.column!r} of the documents holds a {type(text).__name__}, {text!r:.40}, where a "
                    "text should be. Give a column of texts, and leave rows without one out."
                )
            yield text

    def _tokens(self) -> Iterator[list[int]]:
        for text in self._texts():
            ids = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            if ids:
                yield ids

    def _packed(self) -> Iterator[Window]:
        """Yield windows of full length; the rest at the end of a pass is dropped."""
        end = self.tokenizer.eos_token_id
        ids: list[int] = []
        positions: list[int] = []
        for document in self._tokens():
            document = document if end is None else [*document, end]
            start = 0
            while start < len(document):
                taken = document[start : start + self.length - len(ids)]
                ids += taken
                positions += range(len(taken))
                start += len(taken)
                if len(ids) == self.length:
                    yield Window(ids, positions)
                    ids, positions = [], []

    def _cut(self) -> Iterator[Window]:
        first, last = special_tokens(self.tokenizer)
        for document in self._tokens():
            for ids in self._cut_document(document):
                if len(ids) > len(first) + len(last) + 1 or self.length == len(ids):
                    yield Window(ids, list(range(len(ids))))

    def _cut_document(self, document: list[int]) -> Iterator[list[int]]:
        """Yield a document's windows, each inside the special tokens if there are any; the last may be shorter."""
        first, last = special_tokens(self.tokenizer)
        inner = self.length - len(first) - len(last)
        if inner < 1:
            raise HealingError(f"length {self.length} leaves no room between the special tokens; give at least 3.")
        for start in range(0, len(document), inner):
            yield [*first, *document[start : start + inner], *last]

    def _too_short(self) -> HealingError:
        lengths = [len(ids) for ids in self._tokens()]
        if not lengths:
            return HealingError("there is no text to heal with: every document is empty. Give a file with text in it.")
        tokens, longest = sum(lengths), max(lengths)
        if tokens < self.length:
            return HealingError(
                f"the text has {tokens} tokens, less than one window of {self.length}. Give more text, or a shorter "
                f"length: at most {tokens} (--length)."
            )
        return HealingError(
            f"the longest of the {len(lengths)} documents has {longest} tokens, less than one window of {self.length}. "
            "Give longer documents, or a shorter length (--length)."
        )


def _shuffled(windows: Iterator[Window], chance: random.Random, room: int) -> Iterator[Window]:
    """Yield windows drawn at random from a buffer of `room` windows, which are stored as 32-bit integers."""
    waiting: list[tuple[array[int], array[int]]] = []
    for window in windows:
        waiting.append((array("i", window.ids), array("i", window.positions)))
        if len(waiting) > room:
            place = chance.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            yield _unpacked(waiting.pop())
    chance.shuffle(waiting)
    yield from map(_unpacked, waiting)


def _unpacked(stored: "tuple[array[int], array[int]]") -> Window:
    return Window(stored[0].tolist(), stored[1].tolist())


def batches(windows: Iterable[Window], size: int, process: int, processes: int, skip: int) -> Iterator[list[Window]]:
    """Yield this process's batches: out of every `processes` batches in the common order, batch number `process`.

    So n processes read in one round what one process reads in n rounds, and the order is the same for any number of
    processes.

    Args:
        windows: all windows, in the same order in every process.
        size: windows in a batch.
        process: this process's number, from 0.
        processes: number of processes.
        skip: number of this process's batches to skip at the start, because they were read before a restart.
    """
    batch: list[Window] = []
    number = 0
    for window in windows:
        batch.append(window)
        if len(batch) < size:
            continue
        if number % processes == process and number // processes >= skip:
            yield batch
        number += 1
        batch = []


def collate(windows: list[Window], pad_token_id: int) -> dict[str, Tensor]:
    """Return windows as a model's inputs, int64 (B, L).

    Returns `position_ids` only if a window holds several documents, and `attention_mask` only if windows differ in
    length: without both, attention uses its fastest path.
    """
    longest = max(len(window.ids) for window in windows)
    ids = torch.full((len(windows), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = torch.tensor(window.ids)
        mask[row, : len(window.ids)] = 1
    inputs = {"input_ids": ids}
    if not bool(mask.all()):
        return inputs | {"attention_mask": mask}
    positions = torch.tensor([window.positions for window in windows])
    if bool((positions != torch.arange(longest)).any()):
        inputs["position_ids"] = positions
    return inputs


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer with tokens that the model has no embeddings for.

    Raises:
        HealingError: the tokenizer has more tokens than the model.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise HealingError(
            f"the tokenizer does not match the model: it has {len(tokenizer)} tokens, the model has embeddings for "
            f"{rows}. Give the model's own tokenizer, or call model.resize_token_embeddings({len(tokenizer)})."
        )


def check_padding(tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer whose padding token differs from the encoder's.

    An encoder without a head has no loss that would reveal a wrong tokenizer; a different padding token does.

    Raises:
        HealingError: the tokens differ; the message names both.
    """
    own = getattr(model.config, "pad_token_id", None)
    if own is not None and own != tokenizer.pad_token_id:
        raise HealingError(
            f"the tokenizer does not match the model: its padding token is {tokenizer.pad_token_id}, the model's "
            f"{own}. Give the model's own tokenizer."
        )

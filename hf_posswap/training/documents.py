"""Where documents come from: text files, or a `datasets` dataset, streamed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_posswap.demo import resolve_texts
from hf_posswap.training.options import HealingError
from hf_posswap.training.texts import Documents

Texts = tuple[list[str], list[dict[str, Any]]]
"""Texts, and what identifies each of them: name, length and SHA-256."""


def from_files(names: Sequence[str]) -> Texts:
    """Return the texts of files or `demo:` names, and what identifies them: name, length and SHA-256.

    Raises:
        SourceError: a file that is missing, empty or not UTF-8.
    """
    texts: list[str] = []
    facts: list[dict[str, Any]] = []
    for source in (source for name in names for source in resolve_texts(name)):
        text = source.read()
        texts.append(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        facts.append({"name": source.name, "characters": len(text), "sha256": digest})
    return texts, facts


def require_apart(measured: Texts, learned: Texts) -> None:
    """Refuse to learn from what is measured on.

    Raises:
        HealingError: a text that is measured on is learned from, or holds one that is, or is held by one, whatever the
            line breaks.
    """
    others = [(fact["name"], _words(text)) for text, fact in zip(*learned, strict=True)]
    for text, fact in zip(*measured, strict=True):
        words = _words(text)
        for name, other in others:
            if words in other or other in words:
                raise HealingError(
                    f"text {fact['name']!r} is measured on, and {name!r}, which is learned from, has the same "
                    "content. A model that has read a text before says nothing about others: measure on another text, "
                    "or learn from another (--train-file)."
                )


def _words(text: str) -> str:
    """Return a text with its line breaks and spaces evened out, so that a copy set anew is recognised."""
    return " ".join(text.split())


class _Stream:
    """A streamed dataset that says which it is when it cannot be read."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self.dataset
        except (OSError, ValueError) as error:
            raise HealingError(f"cannot read dataset {self.name!r}: {error}") from error


def from_dataset(name: str, split: str = "train", column: str = "text") -> tuple[Documents, list[dict[str, Any]]]:
    """Return a dataset of the Hub or of a local folder, streamed, and what identifies it.

    Raises:
        HealingError: the package `datasets` is missing, or the dataset, split or column is.
    """
    try:
        import datasets
    except ImportError as error:
        raise HealingError(
            'the package datasets is not installed. Install it with pip install "hf_posswap[train]".'
        ) from error
    try:
        dataset = datasets.load_dataset(name, split=split, streaming=True)
        columns = dataset.column_names
    except (OSError, ValueError) as error:
        raise HealingError(f"cannot load split {split!r} of dataset {name!r}: {error}") from error
    if columns is not None and column not in columns:
        raise HealingError(f"dataset {name!r} has no column {column!r}. Its columns: {', '.join(columns)}.")
    return _Stream(dataset, name), [{"dataset": name, "split": split, "column": column}]

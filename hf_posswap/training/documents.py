"""Sources of documents: text files, or a `datasets` dataset, streamed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_posswap.texts.files import read_files
from hf_posswap.training.options import HealingError
from hf_posswap.training.texts import Documents

Texts = tuple[list[str], list[dict[str, Any]]]
"""Documents, and an identity for each of their files. A file holds "documents" documents, or one without that key."""
MAY_RECUR = 0.01
"""Share of the measured documents that may be among the training documents: short ones, as "Yes.", recur by chance."""


def from_files(names: Sequence[str], documents: str | None = None) -> Texts:
    """Return the documents of files or `demo:` names, and the files' identities: name, length and SHA-256.

    Arguments, errors and warnings are those of `hf_posswap.texts.files.read_files`.
    """
    files = read_files(names, documents)
    return [text for file in files for text in file.documents], [file.to_dict() for file in files]


def require_apart(measured: Texts, learned: Texts) -> None:
    """Refuse to train on the texts that are measured on.

    Raises:
        HealingError: ignoring line breaks, a measured text equals a training text, contains one or is part of one; or
            more than `MAY_RECUR` of its documents are training documents.
    """
    others = list(_by_file(learned))
    known = {document for _, documents in others for document in documents}
    for name, documents in _by_file(measured):
        words = " ".join(documents)
        for other_name, other_documents in others:
            other = " ".join(other_documents)
            if words in other or other in words:
                raise HealingError(
                    f"text {name!r} is measured on, and {other_name!r}, which is learned from, has the same "
                    "content. A model that has read a text before says nothing about others: measure on another text, "
                    "or learn from another (--train-file)."
                )
        same = sum(document in known for document in documents)
        if same > MAY_RECUR * len(documents):
            raise HealingError(
                f"{same:,} of the {len(documents):,} documents of {name!r}, which are measured on, are learned from "
                "too. A model that has read a text before says nothing about others: take them out of one of the files."
            )


def _by_file(texts: Texts) -> Iterator[tuple[str, list[str]]]:
    """Yield each file's name and documents with normalised whitespace, so that a reformatted copy is recognised."""
    documents, facts = texts
    start = 0
    for fact in facts:
        stop = start + fact.get("documents", 1)
        yield fact["name"], [" ".join(document.split()) for document in documents[start:stop]]
        start = stop


class _Stream:
    """A streamed dataset whose read errors name it."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self.dataset
        except (OSError, ValueError) as error:
            raise HealingError(f"cannot read dataset {self.name!r}: {error}") from error


def from_dataset(name: str, split: str = "train", column: str = "text") -> tuple[Documents, list[dict[str, Any]]]:
    """Return a dataset of the Hub or of a local folder, streamed, and its identity.

    Raises:
        HealingError: the package `datasets` is missing, or the dataset, split or column does not exist.
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

"""Text files and their documents: one per file, one per line, or one between blank lines.

A document is one coherent text. Windows, calibration and evaluation never put two documents into one context.
"""

import hashlib
import re
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from hf_posswap.errors import SourceError
from hf_posswap.texts.sources import resolve_texts

Split = Literal["file", "lines", "blank-lines"]
SPLITS: tuple[Split, ...] = get_args(Split)
SHORT_LINE = 500
"""Characters of a short line, about a hundred tokens: a sentence, a sequence or a short paragraph."""
LEAST_LINES = 8
"""Smallest number of lines from which the kind of a file can be guessed."""


class DocumentsWarning(UserWarning):
    """A file is read as one text, but each of its lines seems to be a separate text."""


@dataclass(frozen=True)
class TextFile:
    """The content of a file.

    Attributes:
        name: name in results.
        sha256: SHA-256 of the whole text.
        characters: number of characters of the whole text.
        split: how the text was split into documents.
        documents: the documents; none is empty.
    """

    name: str
    sha256: str
    characters: int
    split: Split
    documents: tuple[str, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values that identify the content and its split into documents."""
        facts = {"name": self.name, "characters": self.characters, "sha256": self.sha256}
        return facts if self.split == "file" else facts | {"split": self.split, "documents": len(self.documents)}


@dataclass(frozen=True)
class DocumentLengths:
    """The number of documents and their numbers of tokens.

    Attributes:
        documents: number of documents.
        shortest: tokens of the shortest document, without special tokens.
        median: median number of tokens.
        longest: tokens of the longest document.
    """

    documents: int
    shortest: int
    median: int
    longest: int

    @classmethod
    def of(cls, tokens: Sequence[int], documents: int | None = None) -> "DocumentLengths":
        """Return the lengths of documents.

        Args:
            tokens: number of tokens of each document, at least one document.
            documents: number of documents, if `tokens` is from a sample of them; None: as many as in `tokens`.
        """
        number = len(tokens) if documents is None else documents
        return cls(number, min(tokens), round(statistics.median(tokens)), max(tokens))

    def to_dict(self) -> dict[str, int]:
        """Return JSON-ready values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.documents == 1:
            return f"1 document of {self.longest:,} tokens"
        return (
            f"{self.documents:,} documents of {self.shortest:,} to {self.longest:,} tokens "
            f"(half of them {self.median:,} or fewer)"
        )


def read_files(names: Sequence[str], documents: str | None = None) -> list[TextFile]:
    """Return the content of files or `demo:` names.

    Args:
        names: paths of UTF-8 text files, or `demo:` names.
        documents: unit of a document: the whole "file", each of its "lines", or the text between "blank-lines". None:
            the whole file, with a warning if each line seems to be a separate text.

    Raises:
        SourceError: a file is missing, empty or not UTF-8, or `documents` is unknown.

    Warns:
        DocumentsWarning: `documents` is None, and each line of a file seems to be a separate text.
    """
    split = checked_split(documents)
    files = []
    for source in (source for name in names for source in resolve_texts(name)):
        text = source.read()
        if documents is None and each_line_looks_like_a_text(text):
            warnings.warn(_glued(source.name, text), DocumentsWarning, stacklevel=2)
        digest = hashlib.sha256(text.encode()).hexdigest()
        files.append(TextFile(source.name, digest, len(text), split, split_documents(text, split)))
    return files


def checked_split(documents: str | None) -> Split:
    """Return how files are split into documents; None means one document per file.

    Raises:
        SourceError: the way to split is unknown.
    """
    for split in SPLITS:
        if split == (documents or "file"):
            return split
    raise SourceError(
        f"unknown way to split files into documents, {documents!r} (--documents). Allowed: {', '.join(SPLITS)}."
    )


def split_documents(text: str, split: Split) -> tuple[str, ...]:
    """Return the documents of a text, without empty documents and without leading and trailing white space."""
    if split == "file":
        return (text,)
    parts = text.split("\n") if split == "lines" else re.split(r"\n\s*\n", text)
    return tuple(part.strip() for part in parts if part.strip())


def each_line_looks_like_a_text(text: str) -> bool:
    """Return whether most lines are short, there are few blank lines, and the text is not wrapped prose."""
    lines = [line.strip() for line in text.strip().split("\n")]
    filled = [line for line in lines if line]
    if len(filled) < LEAST_LINES or len(lines) - len(filled) > len(filled) / 10:
        return False
    return statistics.median(map(len, filled)) < SHORT_LINE and not _is_wrapped(filled)


def _is_wrapped(lines: Sequence[str]) -> bool:
    """Return whether most lines of several words are full: the first word of the next line would not have fitted."""
    width = max(map(len, lines))
    words = [(line, following.split()[0]) for line, following in pairwise(lines) if " " in line]
    full = sum(len(line) + 1 + len(word) > width for line, word in words)
    return bool(words) and full > 0.75 * len(words)


def _glued(name: str, text: str) -> str:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    median = round(statistics.median(map(len, lines)))
    return (
        f"{name!r} has {len(lines):,} lines, half of them of {median} characters or fewer, and is read as one text: "
        "each line runs on into the next. If each line is a text of its own, say so: --documents lines "
        "(documents='lines'). If it is one text, --documents file says that."
    )

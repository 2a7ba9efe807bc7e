"""Texts as token ids."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.texts.files import DocumentLengths, TextFile

TokenIds = Tensor | Sequence[int] | Sequence[Tensor] | Sequence[Sequence[int]]
"""One text as integers of shape (n,), or a sequence of such texts."""
WAY_OUT = "Give token ids, integers in one dimension, such as tokenizer(text).input_ids, or a list of such."


@dataclass(frozen=True)
class MeasuredText:
    """A text to measure on.

    Attributes:
        file: the text's file, with its name and documents.
        ids: token ids of each document, int64 (n,).
    """

    file: TextFile
    ids: tuple[Tensor, ...] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Total number of tokens of all documents."""
        return sum(map(len, self.ids))

    def to_dict(self) -> dict[str, Any]:
        """Return the text's identity and how it is split into documents, JSON-ready."""
        facts = {"name": self.file.name, "tokens": self.tokens, "sha256": self.file.sha256}
        if self.file.split == "file":
            return facts
        return facts | {"split": self.file.split} | DocumentLengths.of(list(map(len, self.ids))).to_dict()


def tokenise_files(tokenizer: Any, files: Sequence[TextFile]) -> tuple[MeasuredText, ...]:
    """Return files with the tokens of their documents."""
    return tuple(MeasuredText(file, tuple(tokenise(tokenizer, text) for text in file.documents)) for file in files)


def tokenise(tokenizer: Any, text: str) -> Tensor:
    """Return the token ids of a text, int64 (n,), without special tokens, as windows may start anywhere in the text."""
    # verbose=False: texts longer than the model's limit are intended, and need no warning.
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def begin_token(tokenizer: Any) -> list[int]:
    """Return the token that the tokenizer puts before a text, if any."""
    ids = tokenizer("", verbose=False)["input_ids"]
    return ids if ids == [tokenizer.bos_token_id] else []


def as_texts(token_ids: TokenIds) -> list[Tensor]:
    """Return the texts as int64 tensors of shape (n,).

    Raises:
        EvaluationError: there is no text, or the values are not token ids.
    """
    whole = [token_ids] if isinstance(token_ids, Tensor) and token_ids.dim() == 1 else token_ids
    if isinstance(whole, str | Mapping) or not isinstance(whole, Iterable):
        raise EvaluationError(f"the texts are a {type(whole).__name__}. {WAY_OUT}")
    texts = list(whole)
    if not texts:
        raise EvaluationError("no text given. Give at least one sequence of token ids.")
    if isinstance(texts[0], int):
        texts = [texts]
    return [_as_ids(text) for text in texts]


def _as_ids(text: Any) -> Tensor:
    try:
        ids = torch.as_tensor(text)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EvaluationError(f"a text is a {type(text).__name__}. {WAY_OUT}") from error
    if ids.dim() != 1 or ids.is_floating_point():
        raise EvaluationError(f"a text is of shape {tuple(ids.shape)} and {ids.dtype}. {WAY_OUT}")
    return ids.to(torch.int64)

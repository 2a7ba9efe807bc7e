"""Texts as token ids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_posswap.evaluation.errors import EvaluationError

TokenIds = Tensor | Sequence[int] | Sequence[Tensor] | Sequence[Sequence[int]]
"""One text as integers of shape (n,), or several as a sequence of such."""


def tokenise(tokenizer: Any, text: str) -> Tensor:
    """Return the token ids of a text, int64 (n,), without special tokens: windows start in the middle of the text."""
    # verbose=False: a text longer than the model's limit is the point, and needs no warning.
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def as_texts(token_ids: TokenIds) -> list[Tensor]:
    """Return the texts as int64 tensors of shape (n,).

    Raises:
        EvaluationError: there is none.
    """
    if isinstance(token_ids, Tensor):
        return [token_ids] if token_ids.dim() == 1 else list(token_ids)
    if len(token_ids) == 0:
        raise EvaluationError("no text given. Give at least one sequence of token ids.")
    if isinstance(token_ids[0], int):
        return [torch.tensor(token_ids, dtype=torch.int64)]
    return [torch.as_tensor(text, dtype=torch.int64) for text in token_ids]

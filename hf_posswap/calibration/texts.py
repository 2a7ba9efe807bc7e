"""The texts of calibration: windows of one document each, for the fit or held back for measuring."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_posswap.calibration.fitting import CalibrationError
from hf_posswap.swapped.tokenizers import special_tokens

HELD_BACK = 9
"""One in this many texts is held back for measuring."""
LEAST_TEXTS = 5
"""With fewer texts none is held back, because the fit needs them all."""


def text_windows(tokenizer: Any, text: str, length: int, name: str = "the text") -> list[Tensor]:
    """Return a text's tokens as batches of one window each, int64, (1, length), without overlap.

    A BERT-like tokenizer puts its special tokens around each window, as in the texts that its models were trained on.

    Raises:
        CalibrationError: the text is shorter than one window, or a window has no room for any of it.
    """
    return [window for window in document_windows(tokenizer, [text], length, name) if window.shape[1] == length]


def document_windows(tokenizer: Any, texts: Sequence[str], length: int, name: str = "the text") -> list[Tensor]:
    """Return the tokens of documents as batches of one window each, int64, (1, L), without overlap.

    A document is cut into windows of `length` tokens, and the rest at its end is dropped. A document shorter than a
    window gives one shorter window.

    Args:
        tokenizer: the model's tokenizer.
        texts: the documents.
        length: tokens of a window, special tokens included.
        name: name of the texts in error messages.

    Raises:
        CalibrationError: the documents together have fewer tokens than one window, or a window has no room for any
            token besides the special ones.
    """
    first, last = (torch.tensor(tokens, dtype=torch.int64) for tokens in special_tokens(tokenizer))
    inner = length - len(first) - len(last)
    if inner < 1:
        raise CalibrationError(
            f"{length} tokens at once leave no room between the tokenizer's special tokens; read at least "
            f"{len(first) + len(last) + 1}."
        )
    documents = [
        torch.tensor(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
        for text in texts
    ]
    tokens = sum(map(len, documents))
    if tokens < inner:
        raise CalibrationError(
            f"{name} has {tokens} tokens; calibration reads {inner} at once. Give a longer text"
            + (f", or read at most {tokens} tokens at once." if tokens > 1 else ".")
        )
    parts = (part for ids in documents for part in ids.split(inner) if len(part) == min(inner, len(ids)))
    windows = [torch.cat([first, part.long(), last])[None] for part in parts]
    return [window for window in windows if window.shape[1] > max(1, len(first) + len(last))]


def hold_back(texts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the texts to fit to and the texts to measure on, (B, L) each; the second list is empty for few texts."""
    rows = [row[None] for text in texts for row in text]
    if len(rows) < LEAST_TEXTS:
        return list(texts), []
    held = max(1, len(rows) // HELD_BACK)
    places = {(number + 1) * len(rows) // held - 1 for number in range(held)}
    return (
        [row for place, row in enumerate(rows) if place not in places],
        [row for place, row in enumerate(rows) if place in places],
    )


def tokens_to_read(tokens: int, length: int) -> int:
    """Return how many tokens to read so that `tokens` are left to fit to when some are held back."""
    return tokens + max(length, tokens // (HELD_BACK - 1))


def together(texts: Sequence[Tensor]) -> list[Tensor]:
    """Join texts of one length into batches, none with more tokens than the longest text or batch.

    Without this, many short texts would be run one by one.
    """
    most = max(text.numel() for text in texts)
    by_length: dict[int, list[Tensor]] = {}
    for text in texts:
        by_length.setdefault(text.shape[1], []).append(text)
    batches = []
    for length, alike in by_length.items():
        rows = max(most // length, max(map(len, alike)))
        if all(len(text) == rows for text in alike):
            batches += alike
        else:
            batches += torch.cat(alike).split(rows)
    return batches

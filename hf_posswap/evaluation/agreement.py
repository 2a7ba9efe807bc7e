"""Agreement of a model's text embeddings with the stock model's."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.perplexity import LengthRow, gap_row, length_row
from hf_posswap.results.kinds import AGREEMENT
from hf_posswap.swapped.questions import longest_position

PROTOCOL = AGREEMENT
TOKENS_AT_ONCE = 4096
"""Tokens per batch of texts of one length; single short texts would use a small part of any device."""


@dataclass(frozen=True)
class AgreementRow:
    """Agreement at one length.

    Attributes:
        length: tokens of each text, special tokens included.
        cosine: mean cosine of the two models' embeddings, or None if it could not be measured.
        lowest: the smallest of these cosines.
        texts: number of texts.
        note: reason why there is no cosine.
    """

    length: int
    cosine: float | None
    lowest: float | None
    texts: int
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def embedding_agreement(
    model: Any, stock: Any, texts: Sequence[Tensor], lengths: Sequence[int], first: Sequence[int], last: Sequence[int]
) -> list[AgreementRow]:
    """Return the mean cosine between mean-pooled embeddings of a model and of the stock model, by length.

    Args:
        model: an encoder without a head.
        stock: the stock model, which is the reference.
        texts: token ids, int64 (n,), without special tokens; each text is a document.
        lengths: context lengths in tokens, special tokens included. Windows do not overlap, and a text shorter than a
            length is one window.
        first: special tokens before each window.
        last: special tokens after each window.
    """
    rows = []
    for length in sorted(lengths):
        windows, note = windows_of(stock, texts, length, first, last)
        if note:
            rows.append(AgreementRow(length, None, None, 0, note))
        else:
            rows.append(cosine_row(model, embeddings(stock, windows), length, windows))
    return rows


def cosine_row(model: Any, stock: Tensor, length: int, windows: Sequence[Tensor]) -> AgreementRow:
    """Return the agreement of a model's embeddings with the stock model's at one length; see `agreement_row`."""
    try:
        cosines = cosines_of(embeddings(model, windows), stock)
    except PositionError as error:
        return AgreementRow(length, None, None, 0, str(error))
    return AgreementRow(length, float(cosines.mean()), float(cosines.min()), len(cosines))


def agreement_row(model: Any, stock: Tensor, length: int, windows: Sequence[Tensor], seed: int) -> LengthRow:
    """Return the agreement of a model's embeddings with the stock model's at one length, as protocol "agreement".

    The row's loss is 1 − the mean cosine, its windows are the texts; it has no perplexity.

    Args:
        model: an encoder without a head.
        stock: the stock model's embeddings of the windows, float32 (n, D).
        length: context length in tokens.
        windows: token ids of each window, int64 (n,), special tokens included.
        seed: seed of the bootstrap.
    """
    started = time.perf_counter()
    try:
        distances = 1 - cosines_of(embeddings(model, windows), stock)
    except PositionError as error:
        return gap_row(PROTOCOL, length, str(error))
    row = length_row(PROTOCOL, length, list(distances.split(1)), seed, time.perf_counter() - started)
    return replace(row, perplexity=None, tokens=sum(map(len, windows)) if row.loss is not None else 0)


def windows_of(
    stock: Any, texts: Sequence[Tensor], length: int, first: Sequence[int], last: Sequence[int]
) -> tuple[list[Tensor], str]:
    """Return the windows of a length, int64 (n,) with the special tokens; or no windows and the reason.

    A text is cut into windows of this length; a shorter text is one window.
    """
    limit, inner = longest_position(stock), length - len(first) - len(last)
    longest = max(map(len, texts))
    if limit is not None and length > limit:
        return [], f"the stock model reads {limit} tokens: there is no embedding to agree with"
    if inner < 1:
        return [], "no room between the special tokens"
    if longest < inner:
        return [], f"the longest text has {longest} tokens, without special tokens"
    parts = (part for text in texts for part in text.split(inner) if len(part) == min(inner, len(text)))
    frame = (torch.tensor(ids, dtype=torch.int64) for ids in (first, last))
    before, after = frame
    return [torch.cat([before, part.cpu(), after]) for part in parts if len(part)], ""


@torch.no_grad()
def embeddings(model: Any, windows: Sequence[Tensor]) -> Tensor:
    """Return the mean-pooled last hidden state of each window, float32 (n, D) on the CPU.

    Raises:
        PositionError: the model has fewer positions than a window has tokens.
    """
    found: list[Tensor] = [torch.empty(0)] * len(windows)
    by_size: dict[int, list[int]] = {}
    for place, window in enumerate(windows):
        by_size.setdefault(len(window), []).append(place)
    for size, places in by_size.items():
        for batch in torch.tensor(places).split(max(1, TOKENS_AT_ONCE // size)):
            ids = torch.stack([windows[place] for place in batch.tolist()]).to(model.device)
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            for place, embedding in zip(batch.tolist(), hidden.float().mean(1).cpu(), strict=True):
                found[place] = embedding
    return torch.stack(found)


def cosines_of(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of each pair of embeddings (n, D), float64 (n,)."""
    return F.cosine_similarity(one, other).double()

"""How far a model's text embeddings still agree with the stock model's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.errors import PositionError
from hf_posswap.swapped.questions import longest_position

TOKENS_AT_ONCE = 4096
"""How many tokens are read at once, in texts of one length: short ones alone would leave any device idle."""


@dataclass(frozen=True)
class AgreementRow:
    """Agreement at one length.

    Attributes:
        length: tokens of each text, special tokens included.
        cosine: mean cosine of the two models' embeddings, or None if it could not be measured.
        lowest: the smallest of them.
        texts: number of texts.
        note: why there is no cosine.
    """

    length: int
    cosine: float | None
    lowest: float | None
    texts: int
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@torch.no_grad()
def embedding_agreement(
    model: Any, stock: Any, texts: Sequence[Tensor], lengths: Sequence[int], first: Sequence[int], last: Sequence[int]
) -> list[AgreementRow]:
    """Return the mean cosine between mean-pooled embeddings of a model and of the stock model, by length.

    Args:
        model: an encoder without a head.
        stock: the stock model to agree with.
        texts: token ids, int64 (n,), without special tokens.
        lengths: tokens read at once, special tokens included; windows do not overlap.
        first: special tokens before each window.
        last: special tokens after it.
    """
    rows, limit = [], longest_position(stock)
    for length in sorted(lengths):
        if limit is not None and length > limit:
            note = f"the stock model reads {limit} tokens: there is no embedding to agree with"
            rows.append(AgreementRow(length, None, None, 0, note))
            continue
        inner = length - len(first) - len(last)
        if inner < 1:
            note = "no room between the special tokens"
            rows.append(AgreementRow(length, None, None, 0, note))
            continue
        windows = [part for text in texts for part in text.split(inner) if len(part) == inner]
        if not windows:
            rows.append(AgreementRow(length, None, None, 0, "the texts are shorter than this"))
            continue
        framed = torch.tensor([[*first, *window.tolist(), *last] for window in windows], device=model.device)
        try:
            cosines = _cosines(model, stock, framed)
        except PositionError as error:
            rows.append(AgreementRow(length, None, None, 0, str(error)))
            continue
        rows.append(AgreementRow(length, float(cosines.mean()), float(cosines.min()), len(cosines)))
    return rows


def _cosines(model: Any, stock: Any, framed: Tensor) -> Tensor:
    """Return the cosine of each text, float64 (n,)."""
    batches = framed.split(max(1, TOKENS_AT_ONCE // framed.shape[1]))
    return torch.cat([F.cosine_similarity(_embedding(model, ids), _embedding(stock, ids)) for ids in batches]).double()


def _embedding(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float().mean(1)

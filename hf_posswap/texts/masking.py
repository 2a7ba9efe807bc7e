"""Selection of the tokens that are masked for a masked language model."""

import torch
from torch import Tensor

MASKED_SHARE = 0.15
"""Share of the tokens that are masked, as in BERT."""


def choose_masked(text: Tensor, never: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the tokens to mask, bool (n,): the same number for all texts of one length, at least one if one is allowed.

    Args:
        text: token ids, int64 (n,).
        never: ids that are never masked: the tokenizer's special tokens.
        generator: random number generator.
    """
    allowed = (~torch.isin(text, never)).nonzero().flatten()
    count = min(len(allowed), max(1, round(MASKED_SHARE * len(allowed))))
    drawn = allowed[torch.randperm(len(allowed), generator=generator)[:count]]
    return torch.zeros_like(text, dtype=torch.bool).index_fill(0, drawn, True)

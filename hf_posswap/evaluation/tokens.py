"""From a text to the tokens that a model is measured on."""

from typing import Any

import torch
from torch import Tensor


def token_ids(tokenizer: Any, text: str) -> Tensor:
    """Return the token ids of a text, int64 (n,), without special tokens: windows start in the middle of the text."""
    # verbose=False: a text longer than the model's limit is the point, and needs no warning.
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)

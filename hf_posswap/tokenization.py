"""What a tokenizer puts around a text."""

from typing import Any


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return what a BERT-like tokenizer puts before and after a text; nothing for other tokenizers."""
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        return [], []
    return [tokenizer.cls_token_id], [tokenizer.sep_token_id]

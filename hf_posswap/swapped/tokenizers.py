"""Tokenizers beside a swapped model: the longest text they let through, and what they put around one."""

from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import is_swapped, train_length

STOCK_LIMIT = "stock_model_max_length"
"""Where a tokenizer's config keeps the limit it had before."""


def fit_tokenizer(tokenizer: Any, model: Any) -> Any:
    """Let a tokenizer's `model_max_length` follow the model's positional scheme, in place.

    - A scheme with an end, such as a longer table: that end.
    - A stretched RoPE: the train length times its factor.
    - A scheme made for any length, such as ALiBi: transformers' own value for no limit, int(1e30). Texts are then
      neither cut nor warned of, however long they are.
    - A scheme made for the length that the stock model reads, such as plain RoPE, and a model that is stock or was
      restored: the limit that the tokenizer had before any swap.

    Args:
        tokenizer: a tokenizer of transformers; its limit is saved by its `save_pretrained`.
        model: the model it is for.

    Returns:
        The same tokenizer.
    """
    if not hasattr(tokenizer, "init_kwargs"):
        return tokenizer
    stock = tokenizer.init_kwargs.get(STOCK_LIMIT, tokenizer.model_max_length)
    limit = core_of(model).pos_scheme.made_for() if is_swapped(model) else train_length(model)
    if limit == train_length(model):
        tokenizer.init_kwargs.pop(STOCK_LIMIT, None)
        tokenizer.model_max_length = stock
    else:
        tokenizer.init_kwargs[STOCK_LIMIT] = stock
        tokenizer.model_max_length = VERY_LARGE_INTEGER if limit is None else limit
    return tokenizer


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return what a BERT-like tokenizer puts before and after a text; nothing for other tokenizers."""
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        return [], []
    return [tokenizer.cls_token_id], [tokenizer.sep_token_id]

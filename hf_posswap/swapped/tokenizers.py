"""Tokenizers of swapped models: the longest text that they accept, and the special tokens that they add to a text."""

from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import is_swapped, train_length

STOCK_LIMIT = "stock_model_max_length"
"""Key in a tokenizer's config for the limit that it had before a swap."""


def fit_tokenizer(tokenizer: Any, model: Any) -> Any:
    """Set a tokenizer's `model_max_length` to the limit of the model's positional scheme, in place.

    - A scheme with a limit, such as a longer table: that limit.
    - RoPE with a scaling factor: the train length times the factor.
    - A scheme for any length, such as ALiBi: transformers' value for no limit, int(1e30). The tokenizer then neither
      truncates long texts nor warns about them.
    - A scheme for the length that the stock model reads, such as RoPE without scaling, and a stock or restored model:
      the limit that the tokenizer had before any swap.

    Args:
        tokenizer: a tokenizer of transformers; its `save_pretrained` saves the limit.
        model: the model of the tokenizer.

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
    """Return the tokens that a BERT-like tokenizer adds before and after a text; empty lists for other tokenizers."""
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        return [], []
    return [tokenizer.cls_token_id], [tokenizer.sep_token_id]

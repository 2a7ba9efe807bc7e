"""How many positions a swapped model's config states.

transformers and others stop at `config.max_position_embeddings`: `generate` makes no more tokens, or refuses a prompt,
and sentence-transformers cuts texts. So the config of a swapped model states what the model can represent. The stock
model's number, from which its modules are made, is in the `pos_scheme` entry.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hf_posswap.architectures.discovery import LENGTH_FIELD, STOCK_LENGTH, state_length
from hf_posswap.swapped.modules import longest_position_of
from hf_posswap.swapped.plan import core_of

NO_LIMIT = VERY_LARGE_INTEGER
"""What a config states where there is no limit: transformers' own number for that in tokenizers, int(1e30)."""


def state_own_length(model: Any) -> None:
    """Let a swapped model's config state how many positions the model can represent."""
    config = model.config
    if STOCK_LENGTH not in config.pos_scheme:
        config.pos_scheme = config.pos_scheme | {STOCK_LENGTH: getattr(config, LENGTH_FIELD, None)}
    longest = longest_position_of(core_of(model))
    if longest is not None or hasattr(config, LENGTH_FIELD):
        state_length(config, NO_LIMIT if longest is None else longest)


@contextmanager
def stating_stock_length(config: Any) -> Iterator[None]:
    """Let a swapped config state the stock model's number of positions while its modules are made."""
    stated, entry = getattr(config, LENGTH_FIELD, None), config.pos_scheme or {}
    try:
        state_length(config, entry.get(STOCK_LENGTH, stated))
        yield
    finally:
        state_length(config, stated)

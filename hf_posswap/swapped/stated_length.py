"""The number of positions in a swapped model's config.

transformers and other libraries read `config.max_position_embeddings`: `generate` stops there or refuses a prompt, and
sentence-transformers truncates texts. So the config of a swapped model has the number of positions that the model can
represent. The `pos_scheme` entry has the stock model's number, with which the modules of the model are created.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hf_posswap.architectures.discovery import LENGTH_FIELD, STOCK_LENGTH, state_length
from hf_posswap.swapped.modules import longest_position_of
from hf_posswap.swapped.plan import core_of

NO_LIMIT = VERY_LARGE_INTEGER
"""Number in a config without a limit: transformers' number for tokenizers without a limit, int(1e30)."""


def state_own_length(model: Any) -> None:
    """Write the number of positions that a swapped model can represent to its config."""
    config = model.config
    if STOCK_LENGTH not in config.pos_scheme:
        config.pos_scheme = config.pos_scheme | {STOCK_LENGTH: getattr(config, LENGTH_FIELD, None)}
    longest = longest_position_of(core_of(model))
    if longest is not None or hasattr(config, LENGTH_FIELD):
        state_length(config, NO_LIMIT if longest is None else longest)


@contextmanager
def stating_stock_length(config: Any) -> Iterator[None]:
    """Give a swapped config the stock model's number of positions within a `with` block that creates its modules."""
    stated, entry = getattr(config, LENGTH_FIELD, None), config.pos_scheme or {}
    try:
        state_length(config, entry.get(STOCK_LENGTH, stated))
        yield
    finally:
        state_length(config, stated)

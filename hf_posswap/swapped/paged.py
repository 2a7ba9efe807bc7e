"""Continuous batching: which swapped models support it, and when its attention functions may run.

transformers keeps the keys of all texts in one paged cache and packs new tokens of several texts into a row. A scheme
that acts before attention is correct there: vectors at the embeddings, or rotary angles of the model's own kind. A
scheme that acts in attention needs the position of every cached key, which a paged cache does not provide.
"""

from collections.abc import Mapping
from typing import Any

from hf_posswap.errors import BackendError, UnsupportedError
from hf_posswap.schemes.base import SchemeLayer

PAGED = "paged|"
"""Prefix of the names of transformers' attention functions for a paged cache."""


def check_continuous_batching(core: Any) -> None:
    """Refuse continuous batching if a scheme acts in attention.

    Args:
        core: the module that reads the tokens of a swapped model.

    Raises:
        UnsupportedError: the scheme acts in attention. The check runs before batching starts, because an error in a
            forward would be lost in the batching thread.
    """
    attends = any(module.enters_attention for module in core.modules() if isinstance(module, SchemeLayer))
    ramped = core.pos_ramp is not None and core.pos_ramp.layer is not None
    if attends or ramped or core.architecture.writes_attention:
        raise UnsupportedError(
            f"continuous batching (generate_batch, cache_implementation='paged') cannot run scheme "
            f"{core.pos_scheme.name!r} in {core.architecture.name!r}: the scheme takes part in attention, and a paged "
            "cache does not tell which positions its keys have. Use model.generate with a dynamic or static cache and "
            "prompts padded on the left."
        )


def check_paged_function(backend: str, arguments: Mapping[str, Any]) -> None:
    """Refuse an attention function for a paged cache in a forward without one: it would not apply the causal mask.

    Args:
        backend: the attention backend that the user chose.
        arguments: keyword arguments of the base model's forward.

    Raises:
        BackendError: there is no paged cache among the arguments.
    """
    if backend.startswith(PAGED) and not has_paged_cache(arguments):
        raise BackendError(
            f"backend {backend!r} is for continuous batching (model.generate_batch), which sets it by itself; without "
            "its paged cache, attention would not be causal. Choose another: "
            'model.set_attn_implementation("eager") or "sdpa".'
        )


def has_paged_cache(arguments: Mapping[str, Any]) -> bool:
    """Return whether a paged cache is among the arguments of a forward."""
    from transformers.generation.continuous_batching import PagedAttentionCache

    return any(isinstance(value, PagedAttentionCache) for value in arguments.values())

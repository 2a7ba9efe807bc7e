"""The attention function that swapped layers run, registered with transformers under a name of its own.

An attention module comes here after its projections, norms, rotation and cache: with q, k, v, the mask, and what the
family adds (scaling, dropout, softcap, sinks). What the layer's scheme does with them is in the call that the swapped
attention module hands on beside them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

IMPLEMENTATION = "posswap"
"""The function's name. A swapped attention module's view of the config says it; no saved config does."""
CONTEXT = "pos_context"
"""Keyword that carries the forward's context to the attention modules, and a layer's call to the function."""
CALL = "pos_call"
"""Attribute of an attention module that holds its call while it runs."""


_CURRENT: ContextVar[Any] = ContextVar("posswap_current", default=None)
"""What the keyword would carry, for families whose modules do not hand keywords on. A compiled model has none of it."""


@contextmanager
def current(value: Any) -> Iterator[None]:
    """Let modules that get no keyword find their context, or their call, within a `with` block."""
    token = _CURRENT.set(value)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def handed_on(kwargs: dict[str, Any]) -> Any:
    """Take what was handed on out of the keywords; None if nothing was."""
    given = kwargs.pop(CONTEXT, None)
    return given if given is not None or torch.compiler.is_compiling() else _CURRENT.get()


def attention_of_call(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the attention of a swapped layer; takes and returns what transformers' attention functions do."""
    call = kwargs.pop(CONTEXT, None)
    if call is None:
        call = vars(module).get(CALL)
    if not hasattr(call, "attend"):  # nothing, or the forward's context, which the scheme's own forward did not take
        from hf_posswap.errors import UnsupportedError

        raise UnsupportedError(
            f"{type(module).__name__} does not hand the keyword {CONTEXT!r} to its attention function, or another tool "
            "replaced its forward after the swap, so its positional scheme cannot act there."
        )
    return call.attend(query, key, value, attention_mask, args, kwargs)


AttentionInterface.register(IMPLEMENTATION, attention_of_call)

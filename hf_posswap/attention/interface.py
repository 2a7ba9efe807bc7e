"""The attention function of swapped layers, registered with transformers under its own name.

An attention module calls it after its projections, norms, rotation and cache, with q, k, v, the mask and the arguments
of the family (scaling, dropout, softcap, sinks). The swapped attention module also passes a call object, which applies
the layer's scheme.
"""

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

IMPLEMENTATION = "posswap"
"""Name of the function. The config view of a swapped attention module has it; saved configs do not."""
CONTEXT = "pos_context"
"""Keyword that passes the forward's context to the attention modules, and a layer's call to the attention function."""
CALL = "pos_call"
"""Attribute of an attention module that holds its call while its forward runs."""


_CURRENT: ContextVar[Any] = ContextVar("posswap_current", default=None)
"""The value of the keyword, for families whose modules do not pass keywords on. Compiled graphs cannot read it."""


class current:
    """Provides a context, or a call, to modules that get no keyword, within a `with` block."""

    __slots__ = ("token", "value")

    def __init__(self, value: Any) -> None:
        self.value = value

    def __enter__(self) -> None:
        self.token = _CURRENT.set(self.value)

    def __exit__(self, *raised: object) -> None:
        _CURRENT.reset(self.token)


def handed_on(kwargs: dict[str, Any]) -> Any:
    """Remove the passed value from the keywords and return it; None if there is none."""
    given = kwargs.pop(CONTEXT, None)
    return given if given is not None or torch.compiler.is_compiling() else _CURRENT.get()


def attention_of_call(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the attention of a swapped layer; arguments and result are those of transformers' attention functions."""
    call = kwargs.pop(CONTEXT, None)
    if call is None:
        call = vars(module).get(CALL)
    if not hasattr(call, "attend"):  # None, or the forward's context, if another tool replaced the module's forward
        from hf_posswap.errors import UnsupportedError

        raise UnsupportedError(
            f"{type(module).__name__} does not hand the keyword {CONTEXT!r} to its attention function, or another tool "
            "replaced its forward after the swap, so its positional scheme cannot act there."
        )
    return call.attend(query, key, value, attention_mask, args, kwargs)


AttentionInterface.register(IMPLEMENTATION, attention_of_call)

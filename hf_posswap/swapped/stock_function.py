"""The attention function that a stock module runs, and whether it may be replaced by ours."""

import inspect
import sys
from functools import cache
from typing import Any

import torch
from transformers import AttentionInterface

from hf_posswap.architectures.base import Architecture
from hf_posswap.architectures.discovery import stock_class_of
from hf_posswap.attention.dispatch import BACKENDS
from hf_posswap.errors import BackendError


def stock_function(module: Any, backend: str, family: Architecture) -> Any:
    """Return the attention function that the stock module runs with a backend; None if it is unknown.

    A family may register functions of its own with an `AttentionInterface` in its module.
    """
    if backend == "eager":
        return family.eager_function(module)
    interface = _interface_in(stock_class_of(module).__module__)
    return None if interface is None else interface.get_interface(backend, None)


def check_own_function(module: Any, backend: str) -> None:
    """Refuse a bias if the function of a backend is neither of transformers nor of hf_posswap.

    Attention with a bias runs our function. The results of an unknown function may differ from it.

    Args:
        module: an attention module.
        backend: the attention backend that the user chose.

    Raises:
        BackendError: another function is registered under the backend's name, or replaces the stock function.
    """
    if torch.compiler.is_compiling() or backend not in BACKENDS:
        return
    function = stock_function(module, backend, module.pos_family)
    home = getattr(inspect.unwrap(function), "__module__", None) if callable(function) else None
    if function is not None and (home or "").partition(".")[0] not in ("transformers", "hf_posswap"):
        raise BackendError(
            f"attention function {backend!r} was replaced by {getattr(function, '__qualname__', function)!r} of "
            f"{home}, which hf_posswap cannot give a bias. Register it under a name of its own, and choose eager or "
            'sdpa for this model: model.set_attn_implementation("sdpa").'
        )


@cache
def _interface_in(module_name: str) -> AttentionInterface | None:
    names = vars(sys.modules[module_name])
    return next((value for value in names.values() if isinstance(value, AttentionInterface)), None)

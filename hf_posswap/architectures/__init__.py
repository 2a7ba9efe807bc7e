"""Where positions enter a model: discovered from its modules, and described in a family's own file where needed.

To describe a family that discovery does not handle, add a file here: every module of this package is imported.
"""

import importlib
import pkgutil
from functools import cache
from typing import Any

from hf_posswap.architectures.base import Architecture, families, register_architecture
from hf_posswap.architectures.model_types import language_model_types, stock_type
from hf_posswap.errors import UnsupportedError

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


@cache
def _architecture(model_type: str) -> Architecture:
    return families.get(model_type) if model_type in families.names() else Architecture(model_type)


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a model config, swapped or not.

    Raises:
        UnsupportedError: the model type is no language model of transformers, or cannot take any scheme.
    """
    return architecture_named(stock_type(getattr(config, "model_type", "") or type(config).__name__), config)


def architecture_named(model_type: str, config: Any = None) -> Architecture:
    """Return the architecture of a model type; with a config, only if a scheme can enter models with it.

    Raises:
        UnsupportedError: see `architecture_of`.
    """
    if model_type not in language_model_types():
        raise UnsupportedError(
            f"model type {model_type!r} is not supported: transformers maps it to no causal or masked language model "
            "of text. `hf-posswap matrix --families` lists the supported types; `hf-posswap inspect "
            "MODEL` shows the mechanism of a model."
        )
    architecture = _architecture(model_type)
    reason = None if config is None else architecture.refusal(config)
    if reason is not None:
        raise UnsupportedError(f"model type {model_type!r} is not supported: {reason}")
    return architecture


__all__ = ["Architecture", "architecture_named", "architecture_of", "language_model_types", "register_architecture"]

"""Where positions enter a model: one file per model family, found by its registration.

Adding a file here is all it takes to add a family.
"""

import importlib
import pkgutil

from hf_posswap.architectures.base import (
    Architecture,
    architecture_of,
    architectures,
    register_architecture,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def list_architectures() -> list[str]:
    """Return the names of all supported architectures, sorted."""
    return architectures.names()


__all__ = ["Architecture", "architecture_of", "architectures", "list_architectures", "register_architecture"]

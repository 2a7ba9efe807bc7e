"""Registration of the swapped model types with `AutoConfig`, before their config classes can be created.

This runs while transformers imports its own modules, when importing another of its modules may fail. So a stand-in that
imports nothing is registered first. On first use, the real class replaces it.
"""

import sys
from typing import Any

from hf_posswap.common.names import MODEL_TYPE_PREFIX


class DeferredConfig:
    """Stand-in for one swapped config class; all calls go to the real class."""

    model_type: str
    stock_type: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.real_class()(*args, **kwargs)

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_dict`."""
        return cls.real_class().from_dict(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_pretrained`."""
        return cls.real_class().from_pretrained(*args, **kwargs)

    @classmethod
    def real_class(cls) -> Any:
        """Replace the stand-in by the real class and return the real class."""
        from hf_posswap.architectures import architecture_named
        from hf_posswap.loading.configuration import config_class_of
        from hf_posswap.modeling import register_models

        architecture = architecture_named(cls.stock_type)
        register_models(architecture)
        return config_class_of(architecture)


def register_deferred() -> None:
    """Register a stand-in for every swapped config class with `AutoConfig`."""
    auto = sys.modules["transformers.models.auto.configuration_auto"]
    for stock_type in list(auto.CONFIG_MAPPING_NAMES):
        namespace = {"model_type": MODEL_TYPE_PREFIX + stock_type, "stock_type": stock_type}
        stand_in = type("DeferredConfig", (DeferredConfig,), namespace)
        auto.AutoConfig.register(namespace["model_type"], stand_in, exist_ok=True)

"""Letting `AutoConfig` know the swapped model types before transformers is able to make their config classes.

This runs while transformers is importing its own modules, when importing one more of them may fail. So what is
registered first is a stand-in that imports nothing, and makes way for the real class when it is first used.
"""

import sys
from typing import Any

from hf_posswap.common.names import MODEL_TYPE_PREFIX


class DeferredConfig:
    """Stands in for one swapped config class: whatever is asked of it, the real class does."""

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
        """Put the real class in the stand-in's place and return it."""
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

"""Letting `AutoConfig` know the swapped model types before transformers is able to make their config classes.

This runs while transformers is importing its own modules, when importing one more of them may fail. So what is
registered first is a stand-in that imports nothing, and makes way for the real class when it is first used.
"""

import sys
from typing import Any

from hf_posswap.architectures import Architecture, architectures


class DeferredConfig:
    """Stands in for one swapped config class: whatever is asked of it, the real class does."""

    model_type: str
    architecture: Architecture

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
        """Put the real classes of all architectures in the stand-ins' place and return this one's."""
        from hf_posswap.configuration import config_class_of, register_configs

        register_configs()
        return config_class_of(cls.architecture)


def register_deferred() -> None:
    """Register a stand-in for every swapped config class with `AutoConfig`."""
    auto_config = sys.modules["transformers.models.auto.configuration_auto"].AutoConfig
    for architecture in architectures:
        namespace = {"model_type": f"posswap_{architecture.name}", "architecture": architecture}
        stand_in = type("DeferredConfig", (DeferredConfig,), namespace)
        auto_config.register(namespace["model_type"], stand_in, exist_ok=True)

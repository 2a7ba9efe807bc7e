"""The view of a swapped model's config that its stock modules get.

transformers selects the attention function by `_attn_implementation` in the config of the attention module, and some
rotary modules read the number of positions during a forward. The view has its own values for these two attributes; all
others are those of the config. So `model.config`, the masks of the base model, `set_attn_implementation` and saved
configs keep the user's values.
"""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from hf_posswap.architectures.discovery import LENGTH_FIELD, stock_config
from hf_posswap.attention.interface import IMPLEMENTATION


class ConfigView:
    """A config's attributes, with the stock model's number of positions and optionally another attention function.

    Args:
        config: the model's config; changes of it are visible in the view.
        implementation: the name under which the attention function is registered; None: the value of the config.
    """

    def __init__(self, config: Any, implementation: str | None = IMPLEMENTATION) -> None:
        object.__setattr__(self, "_posswap_config", config)
        object.__setattr__(self, "_posswap_implementation", implementation)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_posswap"):  # a copy that is still being created has no attributes
            raise AttributeError(name)
        if name == "_attn_implementation" and self._posswap_implementation is not None:
            return self._posswap_implementation
        if name == LENGTH_FIELD:
            return getattr(stock_config(self._posswap_config), name)
        return getattr(self._posswap_config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._posswap_config, name, value)

    def __reduce__(self) -> Any:
        return ConfigView, (self._posswap_config, self._posswap_implementation)


def real_config(config: Any) -> Any:
    """Return the config behind a view, or the config itself."""
    return config._posswap_config if isinstance(config, ConfigView) else config


def _shown(module: Any) -> list[tuple[str, Any]]:
    """Return the attributes, with their names, in which a stock module keeps its config or a view of it."""
    kept = list(vars(module).items())
    return [(n, v) for n, v in kept if isinstance(v, PreTrainedConfig | ConfigView) and not n.startswith("pos_")]


def show_view(module: Any, implementation: str | None = IMPLEMENTATION) -> None:
    """Replace the config in all attributes of a module by a view."""
    for name, value in _shown(module):
        setattr(module, name, ConfigView(real_config(value), implementation))


def show_config(module: Any) -> None:
    """Replace the view in all attributes of a module by the config itself."""
    for name, value in _shown(module):
        setattr(module, name, real_config(value))


def own_config(module: Any) -> Any:
    """Return the config that a module keeps, or None."""
    return next((real_config(value) for _, value in _shown(module)), None)

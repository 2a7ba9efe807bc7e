"""A stock module's own view of its swapped model's config.

transformers picks the attention function by `config._attn_implementation` of the attention module, and rotary modules
of some kinds read the number of positions while they run. The view answers these two questions itself, and asks the
config everything else, so that `model.config`, the masks that the base model makes from it, `set_attn_implementation`
and saved configs stay what the user asked for.
"""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from hf_posswap.architectures.discovery import LENGTH_FIELD, stock_config
from hf_posswap.attention.interface import IMPLEMENTATION


class ConfigView:
    """Everything a config says, but that the number of positions is the stock model's, and attention may be ours.

    Args:
        config: the model's config; the view follows every change of it.
        implementation: the name under which the attention function is registered; None: the config's own.
    """

    def __init__(self, config: Any, implementation: str | None = IMPLEMENTATION) -> None:
        object.__setattr__(self, "_posswap_config", config)
        object.__setattr__(self, "_posswap_implementation", implementation)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_posswap"):  # a copy that is still being made has neither
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
    """Return the attributes under which a stock module keeps its config, or a view of it."""
    kept = list(vars(module).items())
    return [(n, v) for n, v in kept if isinstance(v, PreTrainedConfig | ConfigView) and not n.startswith("pos_")]


def show_view(module: Any, implementation: str | None = IMPLEMENTATION) -> None:
    """Let a module see its config, wherever it keeps it, through a view."""
    for name, value in _shown(module):
        setattr(module, name, ConfigView(real_config(value), implementation))


def show_config(module: Any) -> None:
    """Let a module see its config itself again."""
    for name, value in _shown(module):
        setattr(module, name, real_config(value))


def own_config(module: Any) -> Any:
    """Return the config that a module keeps, or None."""
    return next((real_config(value) for _, value in _shown(module)), None)

"""An attention module's own view of its model's config, in which attention is ours.

transformers picks the attention function by `config._attn_implementation` of the attention module. The view answers
that one question itself, and asks the config everything else, so that `model.config`, the masks that the base model
makes from it, `set_attn_implementation` and saved configs stay what the user asked for.
"""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from hf_posswap.attention.interface import IMPLEMENTATION


class ConfigView:
    """Everything a config says, but that attention runs through `hf_posswap.attention.interface`.

    Args:
        config: the model's config; the view follows every change of it.
        implementation: the name under which the attention function is registered.
    """

    def __init__(self, config: Any, implementation: str = IMPLEMENTATION) -> None:
        object.__setattr__(self, "_posswap_config", config)
        object.__setattr__(self, "_posswap_implementation", implementation)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_posswap"):  # a copy that is still being made has neither
            raise AttributeError(name)
        if name == "_attn_implementation":
            return self._posswap_implementation
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


def show_view(module: Any, implementation: str = IMPLEMENTATION) -> None:
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

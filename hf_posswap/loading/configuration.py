"""The swapped config classes: `PosSwapGPT2Config` is `GPT2Config` with a `pos_scheme` entry."""

import os
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from hf_posswap.architectures import Architecture, architecture_of
from hf_posswap.architectures.discovery import STOCK_LENGTH, length_field
from hf_posswap.common.names import CLASS_PREFIX, MODEL_TYPE_PREFIX
from hf_posswap.loading.auto_classes import auto_classes
from hf_posswap.loading.entry import REMOTE_CODE_FILE, remote_code, validate_entry
from hf_posswap.loading.limits import check_dtype, check_fields, check_sizes

HOME = "hf_posswap.modeling"
"""The module from which pickle and the Hub's remote code import swapped config and model classes."""


class SwappedConfig:
    """Mixin for the config of a swapped model: validates `pos_scheme` and saves the remote-code file with the config.

    In memory, the config has the number of positions that the swapped model can represent, because transformers and
    other libraries read it. In the file, it has the stock model's number, which determines the size of its tables.

    The ignored type errors are due to mypy, which does not know the config class that a mixin is combined with.
    """

    pos_scheme: dict[str, Any] | None
    stock_class: ClassVar[type]

    def __post_init__(self, **kwargs: Any) -> None:
        if self.pos_scheme is not None:
            validate_entry(self.pos_scheme)
            check_fields(type(self), kwargs)
            check_dtype(getattr(self, "dtype", None))
        super().__post_init__(**kwargs)  # type: ignore[misc]
        if self.pos_scheme is not None:
            check_sizes(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the config's file."""
        values: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        entry = self.pos_scheme or {}
        if STOCK_LENGTH in entry:
            values.pop(length_field(self), None)
            values |= {} if entry[STOCK_LENGTH] is None else {length_field(self): entry[STOCK_LENGTH]}
        return values

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the config and the remote-code file, with which transformers alone imports hf_posswap."""
        self.auto_map = code_map(architecture_of(self))
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        (Path(save_directory) / REMOTE_CODE_FILE).write_text(remote_code_of(architecture_of(self)), encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: `save_pretrained` writes the remote-code file, and no copy of this module is saved."""


def stock_config_class(architecture: Architecture) -> type[PreTrainedConfig]:
    """Return the stock config class of an architecture."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stock: type[PreTrainedConfig] = CONFIG_MAPPING[architecture.name]
    return stock


@cache
def config_class_of(architecture: Architecture) -> type[PreTrainedConfig]:
    """Return the swapped config class of an architecture, with `model_type` "posswap_gpt2" for "gpt2"."""
    stock = stock_config_class(architecture)
    namespace = {
        "stock_class": stock,
        "model_type": MODEL_TYPE_PREFIX + architecture.name,
        "pos_scheme": None,
        "__annotations__": {"pos_scheme": dict | None, "model_type": ClassVar[str]},
        "__module__": HOME,
        "__doc__": f"`{stock.__name__}` of a model whose positional mechanism was swapped by `hf_posswap`.",
    }
    return type(CLASS_PREFIX + stock.__name__, (SwappedConfig, stock), namespace)


def code_map(architecture: Architecture) -> dict[str, str]:
    """Return the `auto_map` of a swapped config: the class in the remote-code file that each Auto class loads."""
    module = REMOTE_CODE_FILE.removesuffix(".py")
    models = {auto: f"{module}.{CLASS_PREFIX}{stock}" for auto, stock in auto_classes(architecture).items()}
    return {"AutoConfig": f"{module}.{config_class_of(architecture).__name__}"} | models


def remote_code_of(architecture: Architecture) -> str:
    """Return the remote-code file of a swapped config."""
    classes = {name.rpartition(".")[2] for name in code_map(architecture).values()}
    config = config_class_of(architecture).__name__
    return remote_code(architecture.name, [config, *sorted(classes - {config})])


def mark_swapped(config: Any, architecture: Architecture, entry: dict[str, Any]) -> None:
    """Turn a model's config, in place, into a swapped config with this entry; a swapped config gets the new entry."""
    config.__class__ = config_class_of(architecture)
    config.pos_scheme = entry
    config.auto_map = code_map(architecture)


@cache
def register_config(architecture: Architecture) -> None:
    """Register an architecture's swapped config class with `AutoConfig`."""
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register(MODEL_TYPE_PREFIX + architecture.name, config_class_of(architecture), exist_ok=True)

"""peft on swapped models: an adapter stores the scheme it was trained with, and is refused on a base with another one.

An adapter that peft injects into a swapped model (`get_peft_model`, `add_adapter`,
`hf_posswap.training.adapters.add_lora`) trains the scheme's parameters in full besides its own and saves them, as peft
does with a new classifier. Prompt learning injects no layers: it leaves the scheme's parameters unchanged and stores
only the scheme's name and options. On disk such an adapter has a separate peft type, such as "POSSWAP_LORA" for "LORA",
so that peft without hf_posswap fails on it instead of loading it wrongly. In memory its config is a subclass of peft's
config class with a `pos_scheme` entry.

`hf_posswap.adapters.hooks` makes peft call the functions of this module.
"""

import copy
import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.common.names import ADAPTER_TYPE_PREFIX, CLASS_PREFIX
from hf_posswap.errors import AdapterError, PosSwapError
from hf_posswap.loading.entry import config_from_entry, validate_entry
from hf_posswap.swapped.modules import SwappedAttention, SwappedBaseModel
from hf_posswap.swapped.questions import native_scheme

SCHEME = "pos_scheme"
"""Name of the scheme's modules in a model, and of the scheme's entry in a config."""


class CarriesScheme:
    """Mixin for a peft config class: adds the entry of the scheme that the adapter was trained with.

    The ignored type errors are due to mypy, which does not know the config class that a mixin is combined with.
    """

    plain_class: ClassVar[type]
    pos_scheme: dict[str, Any] | None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        validate_entry(self.pos_scheme)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with the peft type that peft without hf_posswap does not know."""
        values = super().to_dict()  # type: ignore[misc]
        return values | {"peft_type": carrying_type(values["peft_type"])}


def carrying_type(peft_type: Any) -> str:
    """Return the type name that an adapter of a peft type has on disk: "POSSWAP_LORA" for "LORA"."""
    return ADAPTER_TYPE_PREFIX + getattr(peft_type, "value", peft_type)


@cache
def carrying_class(plain: Any) -> Any:
    """Return the cached subclass of a peft config class with a `pos_scheme` field, such as `PosSwapLoraConfig`."""
    name = plain.__name__
    made = dataclasses.make_dataclass(
        CLASS_PREFIX + name,
        [(SCHEME, dict[str, Any] | None, dataclasses.field(default=None))],
        bases=(CarriesScheme, plain),
        namespace={"plain_class": plain, "__doc__": f"`{name}` of an adapter that carries a positional scheme."},
    )
    made.__module__ = __name__
    return made


def carrying(config: Any, entry: dict[str, Any] | None) -> Any:
    """Return a peft config with a scheme's entry, or without one if `entry` is None.

    A plain config is changed in place, because its owner goes on using the same object. A config with the entry of
    another scheme stays unchanged, because another model uses it; a changed copy is returned.
    """
    present = getattr(config, SCHEME, None)
    if present == entry:
        return config
    if present is not None:
        config = copy.copy(config)
        config.__class__ = config.plain_class
        del config.pos_scheme
    if entry is not None:
        plain: Any = type(config)
        config.__class__ = carrying_class(plain)
        config.pos_scheme = copy.deepcopy(entry)
    return config


class CarriedModule(ModulesToSaveWrapper):
    """Replaces one of the scheme's modules: holds the base's module, frozen, and a trainable copy for each adapter."""

    original_module: Any
    modules_to_save: Any

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        """Return a mapping from names on disk to the names of the adapter's parameters and saved buffers."""
        if adapter_name not in self.modules_to_save:
            return {}
        own = self.modules_to_save[adapter_name].state_dict()
        return {name: f"modules_to_save.{adapter_name}.{name}" for name in own}

    def adapter_state_dict(self, adapter_name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a mapping from names on disk to the adapter's parameters and saved buffers."""
        return {name: state_dict[inside] for name, inside in self.adapter_state_dict_load_map(adapter_name).items()}

    def kept(self, merge: bool, adapter_names: list[str] | None) -> nn.Module:
        """Return the module that stays when adapters are removed: the merged adapter's, otherwise the base's.

        Raises:
            AdapterError: several adapters are merged, and each has its own module.
        """
        merged = [name for name in adapter_names or self.active_adapters if name in self.modules_to_save]
        if not merge or not merged:
            return self.original_module
        if len(merged) > 1:
            raise AdapterError(
                f"adapters {merged} cannot be merged together: each has its own values of the scheme's parameters. "
                "Merge one: merge_and_unload(adapter_names=[name])."
            )
        return self.modules_to_save[merged[0]]


class _TableInterface(RetiredTable):
    """A `RetiredTable` by type but without tensors: the wrapper delegates to the tables inside it."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


class CarriedTable(CarriedModule, _TableInterface):
    """Replaces a `RetiredTable` and has its interface. All adapters share the base's table."""

    def update(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter's mean row. Its table is the base's, and is not saved with the adapter."""
        super().update(adapter_name, *args, **kwargs)
        self.modules_to_save[adapter_name].table = nn.Buffer(self.original_module.table, persistent=False)

    def kept(self, merge: bool, adapter_names: list[str] | None) -> nn.Module:
        """See `CarriedModule.kept`; the returned module's table is saved with the model again."""
        module: Any = super().kept(merge, adapter_names)
        if module is self.original_module:
            return module
        whole = copy.deepcopy(self.original_module)
        whole.weight = module.weight
        return whole


def entry_in(model: nn.Module) -> dict[str, Any] | None:
    """Return the `pos_scheme` entry of the swapped model that a module is or contains; None if there is none."""
    base: Any = next((module for module in model.modules() if isinstance(module, SwappedBaseModel)), None)
    return None if base is None else base.config.pos_scheme


def require_base_as_loaded(model: nn.Module) -> None:
    """Refuse a new adapter on a model whose weights calibration changed in memory; raise `AdapterError`."""
    if any(module.pos_rewritten for module in model.modules() if isinstance(module, SwappedBaseModel)):
        raise AdapterError(
            "calibration rewrote the weights of queries and keys of this model in memory, and the adapter would be "
            "saved without them. Save the calibrated model (save_pretrained), load it from that folder, and put the "
            "adapter on that."
        )


def places(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield (parent, name) of each module of the scheme with values to save, and of retired tables with a mean row."""
    for module in model.modules():
        if not isinstance(module, SwappedBaseModel | SwappedAttention):
            continue
        if module.pos_scheme.state_dict():
            yield module, SCHEME
        if isinstance(module, SwappedAttention) or module.pos_scheme.brings_whole_table():
            continue
        path = module.architecture.table_path(module)
        if path is not None and isinstance(module.get_submodule(path), RetiredTable):
            parent, _, name = path.rpartition(".")
            yield module.get_submodule(parent), name


def carry(tuner: BaseTuner, model: nn.Module, adapter_name: str) -> None:
    """Add an adapter's copies of the scheme's modules, as peft does with `modules_to_save`."""
    for parent, name in list(places(model)):
        module: Any = getattr(parent, name)
        if isinstance(module, CarriedModule):
            module.update(adapter_name)
        else:
            wrapper: Any = CarriedTable if isinstance(module, RetiredTable) else CarriedModule
            module = wrapper(module, adapter_name)
            module.set_adapter([])
            setattr(parent, name, module)
        if adapter_name in tuner.active_adapters:
            module.set_adapter(adapter_name, inference_mode=tuner.peft_config[adapter_name].inference_mode)


def release(model: nn.Module, merge: bool, adapter_names: list[str] | None) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replace each wrapper by the module that stays, and return (parent, name, wrapper) of each.

    Raises:
        AdapterError: several adapters are to be merged. The model is unchanged.
    """
    found = [(parent, name, getattr(parent, name)) for parent, name in places(model)]
    wrappers = [place for place in found if isinstance(place[2], CarriedModule)]
    kept = [wrapper.kept(merge, adapter_names) for _, _, wrapper in wrappers]
    for (parent, name, _), module in zip(wrappers, kept, strict=True):
        setattr(parent, name, module)
    return wrappers


def exclude_scheme(config: Any, model: nn.Module) -> None:
    """Keep adapter layers out of the scheme's modules, which are trained in full."""
    names = [name for name, _ in model.named_modules() if SCHEME in name.split(".")[:-1]]
    if not names or not hasattr(config, "exclude_modules"):
        return
    if isinstance(config.exclude_modules, str):
        config.exclude_modules = rf"(?:{config.exclude_modules})|(?:.*\.)?{SCHEME}\..*"
    else:
        config.exclude_modules = {*(config.exclude_modules or ()), *names}


def check_scheme(adapter: dict[str, Any] | None, model: nn.Module, source: str) -> None:
    """Refuse a base model whose positional scheme is not the one an adapter was trained with.

    Args:
        adapter: the adapter's `pos_scheme` entry, or None for an adapter of a stock model.
        model: the base model.
        source: name of the adapter, for the message.

    Raises:
        AdapterError: the schemes differ; the message names both and how to load the adapter.
        CheckpointError: the entry is malformed, or of a newer format.
    """
    base = entry_in(model)
    load = f"hf_posswap.training.adapters.load_adapter({source!r}, base=model)"
    if adapter is None and base is None:
        return
    if adapter is None:
        raise AdapterError(
            f"adapter {source!r} was trained on a stock model, whose scheme is {_native(model, base)}, but this base "
            f"model is swapped to {_in_words(base)}. Load it on the stock model (hf_posswap.restore(model) gives that "
            "back), or train one for the swapped model: hf_posswap.training.adapters.add_lora(model, rank)."
        )
    config_from_entry(adapter)
    if base is None:
        raise AdapterError(
            f"adapter {source!r} was trained on a model swapped to {_in_words(adapter)}, but this base model has its "
            f"stock scheme {_native(model, adapter)}. {load} swaps it and puts the adapter on."
        )
    if config_from_entry(adapter) != config_from_entry(base):
        raise AdapterError(
            f"adapter {source!r} was trained on a model swapped to {_in_words(adapter, base)}, but this base model is "
            f"swapped to {_in_words(base, adapter)}. Load the base anew or call hf_posswap.restore(model); then "
            f"{load} swaps it as the adapter says."
        )


def _in_words(entry: Any, other: Any = None) -> str:
    """Return a scheme's name, and the options in which it differs from another scheme of that name."""
    if other is None or other["name"] != entry["name"]:
        return f"scheme {entry['name']!r}"
    options, others = config_from_entry(entry).to_dict(), config_from_entry(other).to_dict()
    differing = [f"{key}={value!r}" for key, value in options.items() if others[key] != value]
    return f"scheme {entry['name']!r} with {', '.join(differing)}"


def _native(model: Any, entry: Any) -> str:
    """Return the name of a model's stock scheme; for an unsupported family, the one in the swapped model's entry."""
    try:
        return repr(native_scheme(model))
    except (PosSwapError, AttributeError):
        return repr(entry["native"])


def __getattr__(name: str) -> Any:
    """Return the config class of that name from `carrying_class`, for pickle."""
    for plain in set(PEFT_TYPE_TO_CONFIG_MAPPING.values()):
        if name == CLASS_PREFIX + plain.__name__:
            return carrying_class(plain)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register() -> None:
    """Register a type with `pos_scheme` for each peft type of injected adapters and of prompt learning."""
    for peft_type, plain in list(PEFT_TYPE_TO_CONFIG_MAPPING.items()):
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type)
        injected = isinstance(tuner, type) and issubclass(tuner, BaseTuner)
        if injected or issubclass(plain, PromptLearningConfig):
            PEFT_TYPE_TO_CONFIG_MAPPING[carrying_type(peft_type)] = carrying_class(plain)


_register()

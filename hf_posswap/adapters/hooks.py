"""Patches of peft for swapped models, applied when this module is imported.

`import hf_posswap` makes sure that it is imported together with peft. The patches wrap the few methods that add, load
and remove adapters, and check the model's scheme first. On stock models with stock adapters these methods behave as
before.
"""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import peft
from peft.config import PeftConfigMixin
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import constants
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.integrations.peft import PeftAdapterMixin
from transformers.utils import find_adapter_config_file

# Imported as a module: it may be only partly initialised here, because its own import of peft imports this module.
from hf_posswap.adapters import carried as schemes
from hf_posswap.common.names import MODEL_TYPE_PREFIX
from hf_posswap.errors import PosSwapError
from hf_posswap.loading.entry import mark_healed
from hf_posswap.swapped.questions import is_swapped

SOURCE = "_posswap_source"
"""Attribute of a config with the source that it was loaded from; a new config does not have it."""
SOURCE_ARGUMENTS = ("subfolder", "revision")
DOWNLOAD_ARGUMENTS = (*SOURCE_ARGUMENTS, "cache_dir", "force_download", "local_files_only", "token")


def _injecting(stock: Callable[..., None]) -> Callable[..., None]:
    """Wrap the method that injects an adapter into a model; all of peft's functions that add an adapter call it."""

    @wraps(stock)
    def inject_adapter(self: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        entry = schemes.entry_in(model)
        try:
            config = _fitting(self.peft_config[adapter_name], model, entry)
        except PosSwapError:
            del self.peft_config[adapter_name]
            raise
        self.peft_config[adapter_name] = config
        if entry is not None:
            schemes.exclude_scheme(config, model)
        stock(self, model, adapter_name, *args, **kwargs)
        if entry is not None:
            schemes.carry(self, model, adapter_name)

    return inject_adapter


def _fitting(config: Any, model: nn.Module, entry: dict[str, Any] | None) -> Any:
    """Return an adapter's config for a model with this entry: a new config gets the entry, a loaded one is checked.

    Raises:
        AdapterError: a loaded config has another scheme.
    """
    source = vars(config).get(SOURCE)
    if source is None:
        schemes.require_base_as_loaded(model)
        return schemes.carrying(config, entry)
    schemes.check_scheme(getattr(config, schemes.SCHEME, None), model, source[0])
    return config


def _prompting(stock: Callable[..., None]) -> Callable[..., None]:
    """Wrap the method that adds prompt learning to a model: it does not call `inject_adapter`."""

    @wraps(stock)
    def add_adapter(self: Any, adapter_name: str, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        if peft_config.is_prompt_learning:
            peft_config = _fitting(peft_config, self.base_model, schemes.entry_in(self.base_model))
        stock(self, adapter_name, peft_config, *args, **kwargs)

    return add_adapter


def _unloading(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the method that removes adapters, which expects layers with weights and biases: release the scheme first."""

    @wraps(stock)
    def unload(self: Any, merge: bool = True, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Any:
        wrappers = schemes.release(self.model, merge, adapter_names)
        try:
            plain = stock(self, merge, *args, adapter_names=adapter_names, **kwargs)
        except BaseException:
            for parent, name, wrapper in wrappers:
                setattr(parent, name, wrapper)
            raise
        if merge and is_swapped(plain):
            mark_healed(plain.config)
        return plain

    return unload


def _remembering(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the loading of a config: record its source, by which a loaded config is told from a new one."""

    @wraps(stock)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        config = stock(cls, pretrained_model_name_or_path, *args, **kwargs)
        subfolder = args[0] if args else kwargs.get("subfolder")
        vars(config)[SOURCE] = _source(pretrained_model_name_or_path, kwargs | {"subfolder": subfolder})
        return config

    return from_pretrained


def _reloading(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the loading of weights: check the scheme, because peft does not read the config for an existing adapter."""

    @wraps(stock)
    def load_adapter(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        present = self.peft_config.get(adapter_name)
        if present is not None and vars(present).get(SOURCE) != _source(model_id, kwargs):
            download = {key: kwargs[key] for key in DOWNLOAD_ARGUMENTS if kwargs.get(key) is not None}
            file = find_adapter_config_file(str(model_id), **download)
            if file is not None:
                values = json.loads(Path(file).read_text(encoding="utf-8"))
                schemes.check_scheme(values.get(schemes.SCHEME), self, str(model_id))
        return stock(self, model_id, adapter_name, *args, **kwargs)

    return load_adapter


def _source(name: Any, arguments: dict[str, Any]) -> tuple[Any, ...]:
    return (str(name), *(arguments.get(key) for key in SOURCE_ARGUMENTS))


def _finding(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `load_adapter` of transformers, which in older versions misses the modules that adapters replace."""

    @wraps(stock)
    def load_adapter(self: Any, peft_model_id: Any = None, adapter_name: Any = None, *args: Any, **kwargs: Any) -> Any:
        renamings = _renamings(self, adapter_name or "default")
        if renamings:
            given = kwargs.get("weight_mapping") or getattr(kwargs.get("load_config"), "weight_mapping", None)
            kwargs["weight_mapping"] = [*(given or get_model_conversion_mapping(self)), *renamings]
        return stock(self, peft_model_id, adapter_name, *args, **kwargs)

    return load_adapter


def _renamings(model: nn.Module, adapter_name: str) -> list[WeightRenaming]:
    """Return the renamings from the scheme's parameters on disk to those in a model with the adapter."""
    names = {module: name for name, module in model.named_modules()}
    found = []
    for parent, name in schemes.places(model):
        place = f"{names[parent]}.{name}".removeprefix(".")
        module: Any = getattr(parent, name)
        own = module.original_module if isinstance(module, schemes.CarriedModule) else module
        for tensor, _ in own.named_parameters():
            found.append(WeightRenaming(f"{place}.{tensor}", f"{place}.modules_to_save.{adapter_name}.{tensor}"))
    return found


def _replace(owner: type, name: str, wrap: Callable[..., Any]) -> None:
    stock = vars(owner)[name]
    setattr(owner, name, classmethod(wrap(stock.__func__)) if isinstance(stock, classmethod) else wrap(stock))


def _teach_default_targets() -> None:
    """Register peft's default target modules of each stock model type for its swapped type, too."""
    for name, mapping in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_"):
            for model_type in list(mapping):
                mapping.setdefault(MODEL_TYPE_PREFIX + model_type, mapping[model_type])


_teach_default_targets()
_replace(BaseTuner, "inject_adapter", _injecting)
_replace(BaseTuner, "_unload_and_optionally_merge", _unloading)
_replace(PeftConfigMixin, "from_pretrained", _remembering)
_replace(peft.PeftModel, "add_adapter", _prompting)
_replace(peft.PeftModel, "load_adapter", _reloading)
_replace(PeftAdapterMixin, "load_adapter", _finding)

"""Adapters on disk: reading their configs, and loading an adapter onto a base model in memory."""

import warnings
from pathlib import Path
from typing import Any

import peft
import transformers
from transformers import PreTrainedModel

from hf_posswap.adapters.carried import SCHEME
from hf_posswap.architectures import architecture_of
from hf_posswap.common.names import CLASS_PREFIX
from hf_posswap.errors import AdapterError, PosSwapError
from hf_posswap.loading.auto_classes import AUTO_CLASS_OF_TASK, auto_classes
from hf_posswap.loading.configuration import mark_swapped
from hf_posswap.loading.entry import mark_healed
from hf_posswap.modeling import register_models, swapped_class
from hf_posswap.sources.models import UNREADABLE
from hf_posswap.swapped.questions import is_swapped
from hf_posswap.swapping import swap


def adapter_config(folder: str | Path) -> Any:
    """Return the peft config of an adapter.

    Args:
        folder: the adapter's folder, or its name on the Hub.

    Raises:
        AdapterError: there is no adapter, or its files are damaged.
    """
    try:
        return peft.PeftConfig.from_pretrained(str(folder))
    except PosSwapError:
        raise
    except (*UNREADABLE, TypeError) as error:  # peft's errors for a folder without an adapter or with a damaged one
        raise AdapterError(
            f"{str(folder)!r} holds no adapter: {error}. Give the folder or the Hub name of a saved adapter."
        ) from error


def base_name(folder: str | Path, config: Any) -> str:
    """Return the name of an adapter's base model.

    Raises:
        AdapterError: the adapter's config does not contain it.
    """
    if not config.base_model_name_or_path:
        raise AdapterError(
            f"adapter {str(folder)!r} does not name the model under it, since that was made from a config. Give it: "
            "load_adapter(folder, base=model)."
        )
    return str(config.base_model_name_or_path)


def adapter_base(name: str) -> str:
    """Return the name of an adapter's base model.

    Raises:
        AdapterError: there is no adapter with that name, or its config does not name a base.
    """
    return base_name(name, adapter_config(name))


def put_on(model: Any, folder: str | Path, config: Any, *, is_trainable: bool = False) -> peft.PeftModel:
    """Load an adapter onto its base, in place; a stock base is first swapped to the adapter's scheme.

    Args:
        model: the base.
        folder: the adapter's folder, or its name on the Hub.
        config: the adapter's config.
        is_trainable: whether the adapter is loaded for further training.

    Raises:
        AdapterError: the adapter's files are damaged, or the base has another scheme.
    """
    entry = getattr(config, SCHEME, None)
    if entry is not None and not is_swapped(model):
        swap(model, {"name": entry["name"]} | entry["options"])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    except PosSwapError:
        raise
    except (*UNREADABLE, UserWarning) as error:
        raise AdapterError(
            f"adapter {str(folder)!r} cannot be put on {type(model).__name__}: {type(error).__name__}: {error}\nIf a "
            "file is cut short, get the adapter again; else give the base it was trained on."
        ) from error


def adapted(config: Any, adapter: Any) -> Any:
    """Change a base model's config to that of the model with the merged adapter, in place, and return it.

    Args:
        config: the base's config.
        adapter: the adapter's config.

    Raises:
        CheckpointError: the adapter's `pos_scheme` entry is malformed, or has a newer format.
    """
    architecture = architecture_of(config)
    known = auto_classes(architecture).get(AUTO_CLASS_OF_TASK.get(str(adapter.task_type), ""))
    config.architectures = [known or trained_on(adapter)]
    entry = getattr(adapter, SCHEME, None)
    if entry is not None:
        mark_swapped(config, architecture, entry)
        register_models(architecture)
        mark_healed(config)
    return config


def base_class(folder: str | Path, config: Any, base_config: Any) -> Any:
    """Return the class that loads the base: the class of the adapter's task, or the class that the adapter names.

    That name comes from a file, so it is looked up among the supported architectures and never imported.
    """
    if config.task_type in AUTO_CLASS_OF_TASK:
        return getattr(transformers, AUTO_CLASS_OF_TASK[config.task_type])
    class_name = trained_on(config)
    stock = architecture_of(base_config).model_class(class_name)
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise AdapterError(
            f"adapter {str(folder)!r} was trained on a {class_name or 'model of unknown class'}, which "
            f"{architecture_of(base_config).name} does not have. Load the base and give it: "
            "load_adapter(folder, base=model)."
        )
    return swapped_class(stock) if getattr(base_config, SCHEME, None) else stock


def trained_on(config: Any) -> str:
    """Return the name of the stock class that an adapter without a task was trained on; "" if its config has none."""
    return str((config.auto_mapping or {}).get("base_model_class", "")).removeprefix(CLASS_PREFIX)

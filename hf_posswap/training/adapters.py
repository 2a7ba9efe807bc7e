"""LoRA on a swapped model: adapts the projections, trains the scheme's parameters in full and saves both together.

    model = hf_posswap.AutoModelForCausalLM.from_pretrained("gpt2", pos_scheme="t5")
    adapted = add_lora(model, rank=8)
    …
    adapted.save_pretrained("adapter")
    again = load_adapter("adapter")

See `hf_posswap.training.adapter_schemes` for the scheme that the adapter stores, and for the bases it is refused on.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_posswap.architectures import Architecture, architecture_of
from hf_posswap.architectures.discovery import stock_class_of
from hf_posswap.errors import PosSwapError, SourceError
from hf_posswap.loading.auto_classes import AUTO_CLASS_OF_TASK, auto_classes
from hf_posswap.loading.configuration import PREFIX, mark_swapped
from hf_posswap.loading.entry import mark_healed
from hf_posswap.loading.origin import remember_name
from hf_posswap.modeling import register_models, swapped_class
from hf_posswap.sources import class_for, load_config, load_model
from hf_posswap.sources.loading import UNREADABLE
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import is_swapped
from hf_posswap.swapping import swap
from hf_posswap.training.adapter_schemes import SCHEME, AdapterError

FOR_CONFIG = ("revision", "subfolder", "cache_dir", "token", "gguf_file")
"""Arguments of `from_pretrained` that locate a config."""


def add_lora(
    model: Any,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Iterable[str] | str | None = None,
) -> peft.PeftModel:
    """Add LoRA to a model, in place (Hu et al. 2021, equation 3): W + α/r·BA on frozen projections W.

    On a swapped model the scheme's parameters, and the mean row of a removed position table, are trained in full and
    saved with the adapter. A stock model, used as a control, gets LoRA only.

    Args:
        model: a transformers model of a supported architecture, swapped or not.
        rank: r, the rank of the update.
        alpha: α; its ratio to the rank scales the update. Default: twice the rank.
        dropout: probability of dropping an input of the update in training.
        target_modules: names of the layers to adapt, or any other value of peft's `target_modules`. Default: every
            linear layer inside the transformer blocks, that is the projections of attention and MLP.

    Returns:
        peft's wrapper of the model. All weights except LoRA and the scheme are frozen.

    Raises:
        AdapterError: the model is not a plain transformers model, or a number is out of range. The model is unchanged.
        UnsupportedError: the architecture is not supported.
    """
    if not isinstance(model, PreTrainedModel):
        raise AdapterError(
            f"{type(model).__name__} is no transformers model. Give the model itself; on a model that has an adapter, "
            "peft's add_adapter(name, LoraConfig(…)) adds another, which carries the scheme too."
        )
    _check_numbers(rank, alpha, dropout)
    architecture = architecture_of(model.config)
    targets = _projections(model, architecture) if target_modules is None else target_modules
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else sorted(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type=_task_of(model, architecture),
    )
    return peft.get_peft_model(model, config)


def _check_numbers(rank: Any, alpha: Any, dropout: Any) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"rank is {rank!r}; it must be a positive integer, such as 8.")
    if alpha is not None and not alpha > 0:
        raise AdapterError(f"alpha is {alpha!r}; it must be positive, or None for twice the rank.")
    if not 0 <= dropout < 1:
        raise AdapterError(f"dropout is {dropout!r}; it must be at least 0 and less than 1.")


def _projections(model: Any, architecture: Architecture) -> set[str]:
    """Return the names of the linear layers inside transformer blocks; `exclude_scheme` removes the scheme's own."""
    return {
        name
        for block, _ in architecture.blocks(core_of(model))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def _task_of(model: Any, architecture: Architecture) -> str | None:
    stock, known = stock_class_of(model).__name__, auto_classes(architecture)
    return next((task for task, auto in AUTO_CLASS_OF_TASK.items() if known.get(auto) == stock), None)


def load_adapter(folder: str | Path, base: Any = None, *, is_trainable: bool = False, **kwargs: Any) -> peft.PeftModel:
    """Load an adapter and its base model, and swap the base to the adapter's scheme.

    Args:
        folder: the adapter's folder, or its name on the Hub.
        base: the base model, or its name or folder. Default: the base that the adapter names. A stock base is swapped
            if the adapter was trained on a swapped model; a model object is swapped in place.
        is_trainable: whether the adapter is loaded for further training.
        kwargs: arguments of the base model's `from_pretrained` (dtype, device_map, …).

    Returns:
        peft's wrapper of the base.

    Raises:
        AdapterError: the adapter is broken, names no base or one that cannot be found, or the base is swapped to
            another scheme.
        CheckpointError: the adapter's `pos_scheme` entry is malformed, or of a newer format.
    """
    config = _config_in(folder)
    if isinstance(base, nn.Module):
        if kwargs:
            raise AdapterError(f"{sorted(kwargs)} are for loading a base model, but base is a model: leave them out.")
        model: Any = base
    else:
        model = _load_base(folder, config, base, kwargs)
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


def adapted_config(name: str) -> Any:
    """Return the config of the model that `adapted_model` returns, without loading weights.

    Raises:
        AdapterError, CheckpointError: see `load_adapter`.
    """
    adapter = _config_in(name)
    config = _base_config(name, _base_name(name, adapter), {})
    architecture = architecture_of(config)
    known = auto_classes(architecture).get(AUTO_CLASS_OF_TASK.get(str(adapter.task_type), ""))
    config.architectures = [known or _trained_on(adapter)]
    entry = getattr(adapter, SCHEME, None)
    if entry is not None:
        mark_swapped(config, architecture, entry)
        register_models(architecture)
        mark_healed(config)
    return config


def adapted_model(name: str, auto_class: Any = None, *, supported_only: bool = True, **kwargs: Any) -> Any:
    """Load an adapter with its base model and merge it; the result is a plain model without peft, marked as healed.

    Args:
        name: the adapter's folder, or its name on the Hub.
        auto_class: the Auto class of the result; None: the class that the adapter was trained on. AutoModel gives the
            base model without a head.
        supported_only: refuse a base whose architecture is not supported.
        kwargs: arguments of the base model's `from_pretrained` (dtype, …).

    Raises:
        AdapterError: see `load_adapter`; or the adapter cannot be merged, or was trained with another head than that of
            `auto_class`.
        CheckpointError: see `load_adapter`.
    """
    adapter = _config_in(name)
    if adapter.is_prompt_learning:
        raise AdapterError(
            f"adapter {name!r} is of type {adapter.peft_type}, which cannot be merged into a model. In Python, "
            "load_adapter(folder) puts it on its base."
        )
    own = class_for(adapted_config(name))
    wanted = own.__name__ if auto_class is None else auto_class.__name__
    if wanted not in (own.__name__, "AutoModel"):
        raise AdapterError(f"adapter {name!r} was trained on an {own.__name__}, and an {wanted} is asked for.")
    base = load_model(_base_name(name, adapter), own, supported_only=supported_only, **kwargs)
    model: Any = load_adapter(name, base=base).merge_and_unload().requires_grad_(True)  # peft froze the base
    remember_name(model, name, name)
    return (model if wanted == own.__name__ else model.base_model).eval()


def adapter_base(name: str) -> str:
    """Return the name of an adapter's base model.

    Raises:
        AdapterError: there is no adapter of that name, or it names no base.
    """
    return _base_name(name, _config_in(name))


def _config_in(folder: str | Path) -> Any:
    try:
        return peft.PeftConfig.from_pretrained(str(folder))
    except PosSwapError:
        raise
    except (*UNREADABLE, TypeError) as error:  # peft's errors for a folder without an adapter, or with a broken one
        raise AdapterError(
            f"{str(folder)!r} holds no adapter: {error}. Give the folder or the Hub name of a saved adapter."
        ) from error


def _base_name(folder: str | Path, config: Any) -> str:
    if not config.base_model_name_or_path:
        raise AdapterError(
            f"adapter {str(folder)!r} does not name the model under it, since that was made from a config. Give it: "
            "load_adapter(folder, base=model)."
        )
    return str(config.base_model_name_or_path)


def _load_base(folder: str | Path, config: Any, base: str | Path | None, kwargs: dict[str, Any]) -> Any:
    name = _base_name(folder, config) if base is None else str(base)
    if base is None and config.revision is not None:
        kwargs = {"revision": config.revision} | kwargs
    base_config = _base_config(folder, name, kwargs)
    auto_class = _class_of(folder, config, base_config)
    return load_model(name, auto_class, supported_only=False, config=base_config, **{"dtype": "auto"} | kwargs)


def _base_config(folder: str | Path, name: str, kwargs: dict[str, Any]) -> Any:
    known = {key: kwargs[key] for key in FOR_CONFIG if key in kwargs}
    try:
        return transformers.AutoConfig.from_pretrained(name, **known) if known else load_config(name)
    except (SourceError, OSError) as error:
        raise AdapterError(
            f"the model under adapter {str(folder)!r} is {name!r}, and cannot be loaded from here: {error}\nIn Python "
            "give it: load_adapter(folder, base=…). On the command line, write where it is now into "
            "base_model_name_or_path of adapter_config.json."
        ) from error


def _class_of(folder: str | Path, config: Any, base_config: Any) -> Any:
    """Return the class that loads the base: the class of the adapter's task, or the one that the adapter names.

    The name comes from a file, so it is looked up among the supported architectures and never imported.
    """
    if config.task_type in AUTO_CLASS_OF_TASK:
        return getattr(transformers, AUTO_CLASS_OF_TASK[config.task_type])
    class_name = _trained_on(config)
    stock = architecture_of(base_config).model_class(class_name)
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise AdapterError(
            f"adapter {str(folder)!r} was trained on a {class_name or 'model of unknown class'}, which "
            f"{architecture_of(base_config).name} does not have. Load the base and give it: "
            "load_adapter(folder, base=model)."
        )
    return swapped_class(stock) if getattr(base_config, SCHEME, None) else stock


def _trained_on(config: Any) -> str:
    """Return the name of the stock class that an adapter without a task was trained on; "" if its config has none."""
    return str((config.auto_mapping or {}).get("base_model_class", "")).removeprefix(PREFIX)

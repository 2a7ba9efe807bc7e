"""LoRA on a swapped model: projections adapted, the scheme's own parameters trained in full, all saved together.

    model = hf_posswap.AutoModelForCausalLM.from_pretrained("gpt2", pos_scheme="t5")
    adapted = add_lora(model, rank=8)
    …
    adapted.save_pretrained("adapter")
    again = load_adapter("adapter")

What the adapter carries, and what it refuses, is in `hf_posswap.training.adapter_schemes`.
"""

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
from hf_posswap.loading.auto_classes import AUTO_CLASS_OF_TASK, auto_classes
from hf_posswap.loading.configuration import PREFIX
from hf_posswap.modeling import swapped_class
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import is_swapped
from hf_posswap.swapping import swap
from hf_posswap.training.adapter_schemes import SCHEME, AdapterError


def add_lora(
    model: Any,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Iterable[str] | str | None = None,
) -> peft.PeftModel:
    """Put LoRA on a model, in place (Hu et al. 2021, equation 3): W + α/r·BA on frozen projections W.

    On a swapped model the scheme's own parameters, and the mean row left of a position table, are trained in full and
    saved with the adapter. On a stock model, as a control, it is LoRA and nothing else.

    Args:
        model: a transformers model of a supported architecture, swapped or not.
        rank: r, the rank of the update.
        alpha: α; its ratio to the rank scales the update. Default: twice the rank.
        dropout: probability of dropping an input of the update in training.
        target_modules: names of the layers to adapt, or what peft takes there. Default: every linear layer inside the
            transformer blocks, that is the projections of attention and MLP.

    Returns:
        peft's model around the model. All but LoRA and the scheme is frozen.

    Raises:
        AdapterError: the model is no plain transformers model, or a number is out of range. Nothing has changed.
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
    """Return the names, below a transformer block, of its linear layers; see `exclude_scheme` for the scheme's own."""
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
    """Load an adapter and the model under it, and swap that model as the adapter says.

    Args:
        folder: the adapter's folder, or its name on the Hub.
        base: the model under it, or its name or folder; by default what the adapter names. If its mechanism is the
            stock one and the adapter's was not, it is swapped: a model that is given, in place.
        is_trainable: whether to go on training it.
        kwargs: for the `from_pretrained` of the base model (dtype, device_map, …).

    Returns:
        peft's model around the base.

    Raises:
        AdapterError: the adapter names no base or none that can be found here, or the base is swapped otherwise.
        CheckpointError: the adapter's `pos_scheme` entry is malformed, or of a newer format.
    """
    config: Any = _config_in(folder)
    if isinstance(base, nn.Module):
        if kwargs:
            raise AdapterError(f"{sorted(kwargs)} are for loading a base model, but base is a model: leave them out.")
        model: Any = base
    else:
        model = _load_base(folder, config, base, kwargs)
    entry = getattr(config, SCHEME, None)
    if entry is not None and not is_swapped(model):
        swap(model, {"name": entry["name"]} | entry["options"])
    return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)


def _config_in(folder: str | Path) -> Any:
    try:
        return peft.PeftConfig.from_pretrained(str(folder))
    except ValueError as error:  # what peft says of a folder without an adapter
        raise AdapterError(
            f"{str(folder)!r} holds no adapter: {error}. Give the folder or the Hub name of a saved adapter."
        ) from error


def _load_base(folder: str | Path, config: Any, base: str | Path | None, kwargs: dict[str, Any]) -> Any:
    name = str(base or config.base_model_name_or_path or "")
    if not name:
        raise AdapterError(
            f"adapter {str(folder)!r} does not name the model under it, since that was made from a config. Give it: "
            "load_adapter(folder, base=model)."
        )
    if base is None and config.revision is not None:
        kwargs = {"revision": config.revision} | kwargs
    return _class_of(folder, config, name, kwargs).from_pretrained(name, **kwargs)


def _class_of(folder: str | Path, config: Any, name: str, kwargs: dict[str, Any]) -> Any:
    """Return the class that loads the base: by the adapter's task, or the one that the adapter was trained on.

    The latter's module comes from a file: it is looked up among supported architectures, never imported by its name.
    """
    if config.task_type in AUTO_CLASS_OF_TASK:
        return getattr(transformers, AUTO_CLASS_OF_TASK[config.task_type])
    class_name = (config.auto_mapping or {}).get("base_model_class", "")
    base_config = transformers.AutoConfig.from_pretrained(name, **_for_config(kwargs))
    stock = architecture_of(base_config).model_class(class_name.removeprefix(PREFIX))
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise AdapterError(
            f"adapter {str(folder)!r} was trained on a {class_name or 'model of unknown class'}, which "
            f"{architecture_of(base_config).name} does not have. Load the base and give it: "
            "load_adapter(folder, base=model)."
        )
    return swapped_class(stock) if getattr(base_config, SCHEME, None) else stock


def _for_config(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in ("revision", "subfolder", "cache_dir", "token") if key in kwargs}

"""LoRA on a swapped model: adapts the projections, trains the scheme's parameters in full and saves both together.

    model = hf_posswap.AutoModelForCausalLM.from_pretrained("gpt2", pos_scheme="t5")
    adapted = add_lora(model, rank=8)
    …
    adapted.save_pretrained("adapter")
    again = load_adapter("adapter")

See `hf_posswap.adapters.carried` for the scheme that the adapter stores, and for the bases it is refused on.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_posswap.architectures import Architecture, architecture_of
from hf_posswap.architectures.discovery import stock_class_of
from hf_posswap.errors import AdapterError
from hf_posswap.loading.auto_classes import AUTO_CLASS_OF_TASK, auto_classes
from hf_posswap.sources import load_model
from hf_posswap.sources.adapters import adapter_config, base_class, base_name, put_on
from hf_posswap.sources.loading import base_config
from hf_posswap.swapped.plan import core_of


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
    config = adapter_config(folder)
    if isinstance(base, nn.Module):
        if kwargs:
            raise AdapterError(f"{sorted(kwargs)} are for loading a base model, but base is a model: leave them out.")
        model: Any = base
    else:
        model = _load_base(folder, config, base, kwargs)
    return put_on(model, folder, config, is_trainable=is_trainable)


def _load_base(folder: str | Path, config: Any, base: str | Path | None, kwargs: dict[str, Any]) -> Any:
    name = base_name(folder, config) if base is None else str(base)
    if base is None and config.revision is not None:
        kwargs = {"revision": config.revision} | kwargs
    own = base_config(folder, name, **kwargs)
    auto_class = base_class(folder, config, own)
    return load_model(name, auto_class, supported_only=False, config=own, **{"dtype": "auto"} | kwargs)

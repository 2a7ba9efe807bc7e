"""The stock model as a teacher."""

import copy
from typing import Any

from hf_posswap.architectures import architecture_of
from hf_posswap.loading.entry import healed_before, is_healed
from hf_posswap.swapped.questions import is_swapped, longest_position, plain_model, train_length
from hf_posswap.swapping import restore
from hf_posswap.training.options import HealingError


def stock_copy(model: Any, share: bool = True) -> Any:
    """Return the stock model inside a model, swapped or not: frozen, in evaluation mode.

    Args:
        model: the model.
        share: share the frozen weights with the model, so that only trainable weights are copied.

    Raises:
        HealingError: the model was healed before, and no longer contains the stock model.
    """
    require_stock_inside(model)
    shared = {id(weight): weight for weight in model.parameters() if share and not weight.requires_grad}
    teacher = copy.deepcopy(model, shared)
    if hasattr(teacher, "unload"):
        teacher = teacher.unload()  # peft: without its adapters
    if is_swapped(teacher):
        restore(teacher)
    if any(getattr(module, "gradient_checkpointing", False) for module in teacher.modules()):
        teacher.gradient_checkpointing_disable()
    return teacher.eval().requires_grad_(False)


def require_stock_inside(model: Any) -> None:
    """Refuse a model that was healed before, because it no longer contains the stock model; raise `HealingError`."""
    config = plain_model(model).config
    if is_healed(config):
        raise HealingError(
            f"{healed_before(config)} To heal it further, load that model too and pass it as teacher= "
            "(on the command line: --stock NAME), or learn from the text alone: supervise=('labels',) (--supervise "
            "labels)."
        )


def require_same_shape(stock: Any, model: Any, name: str) -> None:
    """Refuse a stock model that `model` cannot have been made from; raise `HealingError`.

    Args:
        stock: the model named as the stock model.
        model: the model.
        name: the name by which `stock` was loaded.
    """
    ours, theirs = _shape(model.config), _shape(stock.config)
    for key, value in theirs.items():
        if value != ours[key]:
            raise HealingError(
                f"{name!r}, named as the stock model, has {key} {value!r}, and the model to heal {ours[key]!r}: it was "
                "not made from that one. Name the model that was swapped."
            )


def _shape(config: Any) -> dict[str, Any]:
    sizes = {key: getattr(config, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
    return {"architecture": architecture_of(config).name} | sizes


def readable_length(stock: Any) -> int:
    """Return the length of the longest text that a stock model was trained on and has positions for."""
    limit = longest_position(stock)
    return train_length(stock) if limit is None else min(limit, train_length(stock))

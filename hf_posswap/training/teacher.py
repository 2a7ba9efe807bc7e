"""The stock model as a teacher."""

import copy
from typing import Any

from hf_posswap.swapping import is_swapped, longest_position, restore, train_length


def stock_copy(model: Any, share: bool = True) -> Any:
    """Return the stock model inside a model, swapped or not: frozen, in evaluation mode.

    Args:
        model: the model.
        share: share the weights that do not learn, so that a teacher costs memory only for what will change.
    """
    shared = {id(weight): weight for weight in model.parameters() if share and not weight.requires_grad}
    teacher = copy.deepcopy(model, shared)
    if hasattr(teacher, "unload"):
        teacher = teacher.unload()  # peft: without its adapters
    if is_swapped(teacher):
        restore(teacher)
    if any(getattr(module, "gradient_checkpointing", False) for module in teacher.modules()):
        teacher.gradient_checkpointing_disable()
    return teacher.eval().requires_grad_(False)


def readable_length(stock: Any) -> int:
    """Return the longest text a stock model was trained to read and has positions for."""
    limit = longest_position(stock)
    return train_length(stock) if limit is None else min(limit, train_length(stock))

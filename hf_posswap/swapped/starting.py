"""Weights that nobody has given a value yet: what a swap put in starts as it does when a loaded model is swapped.

transformers starts such weights by `initialize_weights`: those that a checkpoint lacks or has in another shape, and all
of a model that was made on the meta device. It knows stock modules only.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_posswap.architectures.tables import RetiredTable, table_rows
from hf_posswap.schemes.base import Scheme
from hf_posswap.swapped.modules import SwappedBaseModel

FLAG = "_is_hf_initialized"
"""Attribute by which transformers marks tensors that have a value, and modules whose tensors all have one."""


def mark_started(module: nn.Module) -> None:
    """Mark what a swap puts into a model with weights as having its values, so that nothing starts it again."""
    setattr(module, FLAG, True)


@torch.no_grad()
def start_scheme(model: Any) -> None:
    """Give every tensor that a swap put into a model, and that has no value yet, the value it starts from.

    Args:
        model: a swapped model, or one that is being made and has no scheme yet.
    """
    core: Any = next((module for module in model.modules() if isinstance(module, SwappedBaseModel)), None)
    if not hasattr(core, "pos_scheme"):
        return
    architecture, scheme = core.architecture, core.pos_scheme
    table = architecture.position_table(core)
    if isinstance(table, RetiredTable):
        _start_table(table, core)
    facts = dataclasses.replace(scheme.facts, native_table=table_rows(table, architecture.first_row(core)))
    fresh: Scheme = type(scheme)(scheme.config, facts)
    _start(scheme, fresh)
    for index, module in architecture.attention_modules(core):
        layer = getattr(module, "pos_scheme", None)
        if layer is not None and next(layer.parameters(), None) is not None:
            _start(layer, fresh.make_layer(index))


@contextmanager
def table_for_its_owner(model: Any) -> Iterator[None]:
    """Let a copy of the stock table stand in the place of a retired one within a `with` block.

    Some families start the module around the table, and write all rows of the table as they do (DistilBERT's
    sinusoids); a mean row has another shape.
    """
    core: Any = next((module for module in model.modules() if isinstance(module, SwappedBaseModel)), None)
    path = core.architecture.table_path(core) if hasattr(core, "pos_scheme") else None
    retired = None if path is None else core.get_submodule(path)
    if path is None or not isinstance(retired, RetiredTable):
        yield
        return
    copied = retired.revive()
    mark_started(copied)
    core.set_submodule(path, copied)
    try:
        yield
    finally:
        core.set_submodule(path, retired)


def _start_table(retired: RetiredTable, core: Any) -> None:
    """Start a retired table as the family starts its position table, and its mean row from that."""
    if getattr(retired, FLAG, False):
        return
    stock = retired.revive()
    core._init_weights(stock)
    _give(retired.table, stock.weight)
    _give(retired.weight, retired.stand_in())
    mark_started(retired)


def _start(module: nn.Module, fresh: nn.Module) -> None:
    if getattr(module, FLAG, False):
        return
    values = fresh.state_dict()
    for name, tensor in module.state_dict(keep_vars=True).items():
        _give(tensor, values[name])
    mark_started(module)


def _give(tensor: Tensor, value: Tensor) -> None:
    if not getattr(tensor, FLAG, False):
        tensor.copy_(value)

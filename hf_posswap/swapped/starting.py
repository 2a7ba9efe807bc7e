"""Initial values for weights that have none yet: a swapped model gets the values that a swap of a loaded model gives.

transformers initialises such weights in `initialize_weights`: weights that a checkpoint lacks or has in another shape,
and all weights of a model that was created on the meta device. It initialises stock modules only.
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
"""Attribute with which transformers marks tensors that have a value, and modules whose tensors all have one."""


def mark_started(module: nn.Module) -> None:
    """Mark the modules of a swap as initialised, so that transformers does not initialise them again."""
    for part in module.modules():
        setattr(part, FLAG, True)


@torch.no_grad()
def start_scheme(model: Any) -> None:
    """Initialise every tensor of a swap that has no value yet.

    Args:
        model: a swapped model, or a model that is still being created and has no scheme yet.
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
        if layer is not None and layer.state_dict():
            _start(layer, fresh.make_layer(index))


@contextmanager
def table_for_its_owner(model: Any) -> Iterator[None]:
    """Replace a retired table by a copy of the stock table within a `with` block.

    Some families initialise the module that contains the table and write all rows of the table (DistilBERT's
    sinusoids). The weight of a retired table is its mean row, which has another shape.
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
    """Initialise a retired table as the family initialises its position table, and compute its mean row from it."""
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

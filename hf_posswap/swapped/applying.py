"""Makes the changes of a planned swap by plain assignments, takes them back, and suspends them for a time."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hf_posswap.architectures.base import Architecture
from hf_posswap.architectures.discovery import rotary_modules, stock_class_of
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.attention.interface import CALL
from hf_posswap.swapped.config_view import own_config, real_config, show_config, show_view
from hf_posswap.swapped.modules import SwappedAttention
from hf_posswap.swapped.plan import Plan, rest_learns
from hf_posswap.swapped.replaced import ProvedForwards


def _retype(module: nn.Module, new_class: type) -> None:
    module.__class__ = new_class
    if "_old_forward" in vars(module):
        # accelerate's hook calls `_old_forward`; mypy does not know the attributes of a class made at run time.
        module._old_forward = new_class.forward.__get__(module)  # type: ignore[attr-defined]


def apply_plan(model: Any, architecture: Architecture, plan: Plan) -> None:
    """Apply a plan to the model: only assignments, which cannot fail half-way."""
    core = plan.core
    if hasattr(core, "pos_scheme"):
        remove_scheme(core, architecture)
    core.pos_whole = stock_class_of(model)
    core.pos_place = architecture.place(core)
    for entry in plan.layers:
        module: Any = entry.module
        module.pos_scheme = entry.layer
        module.pos_part = entry.part
        module.pos_family = architecture
        if entry.turn is not None:
            module.pos_turn = entry.turn
        if entry.views:
            show_view(module)
        _retype(module, entry.new_class)
    for _, rotary in rotary_modules(core):
        show_view(rotary, None)
    if plan.rotary is not None:
        unread, new_class, width = plan.rotary
        unread.pos_width = width
        _retype(unread, new_class)
    if plan.retired is not None:
        core.set_submodule(*plan.retired)
    core.pos_layers = tuple(entry.module for entry in plan.layers)
    core.pos_prepares = any(
        entry.layer.enters_attention or (entry.turn is not None and entry.turn.own) for entry in plan.layers
    )
    core.pos_fitted = all(entry.layer.unfitted() is None for entry in plan.layers)
    core.pos_scheme = plan.scheme
    _retype(core, plan.core_class)
    core.pos_forwards = ProvedForwards(core)


def give_own_config(model: Any) -> None:
    """Replace a model's config with a deep copy, on every module that shares it.

    Several models may share one config object, and a swap must change the config of one model only.
    """
    shared = model.config
    own = copy.deepcopy(shared)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if value is shared:
                setattr(module, name, own)


@contextmanager
def undone_on_error(model: Any) -> Iterator[None]:
    """Restore the classes, modules, attributes and config of a model if a `with` block raises an error.

    Weights are not copied, because a swap does not write to them.
    """
    owners = [*model.modules(), model.config]
    kept = [(owner, type(owner), _contents(vars(owner))) for owner in owners]
    try:
        yield
    except BaseException:
        for owner, kind, contents in kept:
            vars(owner).clear()
            vars(owner).update(_contents(contents))
            owner.__class__ = kind
        raise


def _contents(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value.copy() if type(value) is dict else value for name, value in attributes.items()}


def remove_scheme(core: Any, architecture: Architecture) -> None:
    """Restore the stock modules and classes of a swapped core."""
    for module in core.modules():
        if module is not core and "stock_class" in vars(type(module)) and "pos_mixin" in vars(type(module)):
            show_config(module)
            _retype(module, type(module).stock_class)
            for name in ("pos_scheme", "pos_part", "pos_turn", "pos_family", "pos_width", CALL):
                if name in module._modules or name in vars(module):
                    delattr(module, name)
    for _, rotary in rotary_modules(core):
        show_config(rotary)
    path = architecture.table_path(core)
    table = None if path is None else core.get_submodule(path)
    if isinstance(table, RetiredTable) and path is not None:
        core.set_submodule(path, table.revive(rest_learns(core, table)))
    del core.pos_scheme
    for name in (
        "pos_ramp",
        "pos_place",
        "pos_layers",
        "pos_forwards",
        "pos_proof",
        "pos_whole",
        "pos_prepares",
        "pos_fitted",
    ):
        vars(core).pop(name, None)
    _retype(core, type(core).stock_class)


@contextmanager
def natively(core: Any, architecture: Architecture) -> Iterator[None]:
    """Run a swapped core with its stock mechanism within a `with` block; scheme modules stay in place."""
    swapped = [(module, type(module)) for module in core.modules() if "pos_mixin" in vars(type(module))]
    layers = [module for module, _ in swapped if isinstance(module, SwappedAttention)]
    viewed = [module for module in layers if own_config(module) is not None and _has_view(module)]
    path = architecture.table_path(core)
    table = None if path is None else core.get_submodule(path)
    try:
        for module, swapped_type in swapped:
            _retype(module, swapped_type.stock_class)
        for module in viewed:
            show_config(module)
        if isinstance(table, RetiredTable) and path is not None:
            core.set_submodule(path, table.revive())
        yield
    finally:
        if isinstance(table, RetiredTable) and path is not None:
            core.set_submodule(path, table)
        for module in viewed:
            show_view(module)
        for module, swapped_type in swapped:
            _retype(module, swapped_type)


def _has_view(module: nn.Module) -> bool:
    return any(real_config(value) is not value for value in vars(module).values())

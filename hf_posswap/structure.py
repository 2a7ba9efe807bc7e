"""Putting a scheme into the modules of a base model, and taking it out again: all or nothing."""

import dataclasses
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_posswap.architectures.base import Architecture
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.offloading import device_of, in_memory
from hf_posswap.schemes import SchemeConfig, SchemeLayer, check_supported, scheme_class
from hf_posswap.schemes.base import ModelFacts, Scheme

SMALL_SCHEME = 2**28
"""Parameters that a scheme may have however small its model is: 1 GiB in float32."""

ToSwapped = Callable[[type], type]
"""Maps a stock class to its swapped class, made once per stock class."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything a swap will change, made before anything is changed.

    Attributes:
        config: the resolved config.
        scheme: the module for the base model.
        layers: (attention module, its new class, scheme layer) for each layer concerned.
        base_class: the base model's new class.
        retired: what replaces the position table, or None if a table stays or there is none.
    """

    config: SchemeConfig
    scheme: Scheme
    layers: list[tuple[nn.Module, type, SchemeLayer]]
    base_class: type
    retired: RetiredTable | None


def plan_swap(base: Any, architecture: Architecture, config: SchemeConfig, to_swapped: ToSwapped) -> Plan:
    """Make the modules and classes of a swap without touching the model, stock or swapped.

    Args:
        base: the base model.
        architecture: its architecture.
        config: the scheme's options, open ones included.
        to_swapped: see `ToSwapped`.

    Raises:
        UnsupportedError, SchemeConfigError: the model cannot take the scheme, or not with these options.
    """
    embeddings = base.get_input_embeddings()
    with in_memory(embeddings, architecture.position_table(base)):
        facts = architecture.facts(base)
    resolved = config.resolve(facts)
    check_supported(resolved, facts)
    _check_size(base, resolved, facts)
    scheme = scheme_class(resolved.name)(resolved, facts)
    retired = None
    if facts.native_table is not None and not resolved.keep_native:
        retired = RetiredTable(facts.native_table, use_mean=not scheme.brings_whole_table())
    chosen = _plan_layers(base, architecture, resolved, scheme, facts)
    dtype = base.dtype  # transformers looks for it through all weights
    _match(scheme, dtype=dtype, device=device_of(embeddings))
    for module, layer in chosen:
        _match(layer, dtype=dtype, device=device_of(module))
        _check_forward(module)
    _check_forward(base)
    layers = [(module, to_swapped(stock_class_of(module)), layer) for module, layer in chosen]
    return Plan(resolved, scheme, layers, to_swapped(stock_class_of(base)), retired)


def _check_size(base: Any, config: SchemeConfig, facts: ModelFacts) -> None:
    """Refuse a scheme far larger than the model before anything is allocated: its numbers may come from a file."""
    table = facts.native_table
    if table is not None:
        facts = dataclasses.replace(facts, native_table=table.to("meta"))
    try:
        with torch.device("meta"):
            scheme = scheme_class(config.name)(config, facts)
            layers = len(config.layers or range(facts.num_layers)) if scheme.acts_in_layers else 0
            parts = [(scheme, 1), (scheme.make_layer(0), layers)]
        size = sum(weight.numel() * times for part, times in parts for weight in part.parameters())
    except RuntimeError as error:  # torch's, for sizes that overflow its integers
        raise SchemeConfigError(f"scheme {config.name!r} would be too large to exist with these options.") from error
    if size <= SMALL_SCHEME:
        return  # without a look at every weight of the model
    allowed = max(SMALL_SCHEME, sum(weight.numel() for weight in base.parameters()))
    if size > allowed:
        options = {key: value for key, value in config.to_dict().items() if key != "name" and value is not None}
        raise SchemeConfigError(
            f"scheme {config.name!r} would have {size:,} parameters with these options, more than {allowed:,}, which "
            f"is taken for a mistake. Lower what makes it large: {reprlib.repr(options)}."
        )


def scheme_keys(model: nn.Module) -> dict[str, torch.Size]:
    """Return the names, in a swapped model's state dict, of what its swap put in, and their shapes."""
    kinds = Scheme | SchemeLayer | RetiredTable
    parts = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    return {
        ".".join(filter(None, (name, key))): value.shape
        for name, module in parts
        for key, value in module.state_dict().items()
    }


def stock_class_of(module: nn.Module) -> type:
    """Return the stock class of a module, swapped or not."""
    return vars(type(module)).get("stock_class", type(module))


def _plan_layers(
    base: Any, architecture: Architecture, config: SchemeConfig, scheme: Scheme, facts: ModelFacts
) -> list[tuple[nn.Module, SchemeLayer]]:
    modules = list(architecture.attention_modules(base))
    if scheme.acts_in_layers:
        chosen = range(facts.num_layers) if config.layers is None else config.layers
        return [(module, scheme.make_layer(index)) for index, module in modules if index in chosen]
    if facts.native_table is None and not config.keep_native:
        # The scheme enters at the embeddings; what it replaces sits in the layers and has to be left out there.
        return [(module, SchemeLayer()) for _, module in modules]
    return []


def _match(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give new parameters the model's dtype and device; a model on the meta device keeps them there."""
    if device.type == "meta":
        module.to_empty(device=device)
    module.to(dtype=dtype, device=device)


def _check_forward(module: nn.Module) -> None:
    """Refuse a module whose forward was replaced on the instance: changing its class would silently do nothing.

    Accelerate's hooks do replace it, but say what they call, and `_retype` redirects that.
    """
    if "forward" in vars(module) and "_old_forward" not in vars(module):
        raise UnsupportedError(
            f"the forward of {type(module).__name__} was replaced on the instance by another tool, so a swap would not "
            "take effect. Swap before that tool patches the model, or load the model anew."
        )


def _retype(module: nn.Module, new_class: type) -> None:
    module.__class__ = new_class
    if "_old_forward" in vars(module):
        module._old_forward = new_class.forward.__get__(module)  # type: ignore[attr-defined]


def apply_plan(base: Any, architecture: Architecture, plan: Plan) -> None:
    """Carry out a plan: plain assignments that cannot fail half-way."""
    if hasattr(base, "pos_scheme"):
        remove_scheme(base, architecture)
    for module, new_class, layer in plan.layers:
        module.pos_scheme = layer
        module.pos_keep_native = plan.config.keep_native  # type: ignore[assignment]
        _retype(module, new_class)
    if plan.retired is not None and architecture.table_path is not None:
        base.set_submodule(architecture.table_path, plan.retired)
    base.pos_scheme = plan.scheme
    _retype(base, plan.base_class)


def remove_scheme(base: Any, architecture: Architecture) -> None:
    """Give a swapped base model its stock modules and classes back."""
    for _, module in architecture.attention_modules(base):
        stock = getattr(type(module), "stock_class", None)
        if stock is not None:
            _retype(module, stock)
            del module.pos_scheme, module.pos_keep_native
    table = architecture.position_table(base)
    if isinstance(table, RetiredTable) and architecture.table_path is not None:
        base.set_submodule(architecture.table_path, table.revive())
    del base.pos_scheme
    vars(base).pop("pos_ramp", None)
    _retype(base, type(base).stock_class)


@contextmanager
def natively(base: Any, architecture: Architecture) -> Iterator[None]:
    """Let a swapped base model run its stock mechanism within a `with` block; scheme modules stay where they are."""
    modules = [base, *(module for _, module in architecture.attention_modules(base))]
    swapped = [(module, type(module)) for module in modules if "stock_class" in vars(type(module))]
    table = architecture.position_table(base)
    try:
        for module, swapped_type in swapped:
            _retype(module, swapped_type.stock_class)
        if isinstance(table, RetiredTable) and architecture.table_path is not None:
            base.set_submodule(architecture.table_path, table.revive())
        yield
    finally:
        if isinstance(table, RetiredTable) and architecture.table_path is not None:
            base.set_submodule(architecture.table_path, table)
        for module, swapped_type in swapped:
            _retype(module, swapped_type)

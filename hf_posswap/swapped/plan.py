"""Plans a swap: makes the modules and classes that put a scheme into a model, and refuses what cannot be."""

import dataclasses
import reprlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_posswap.architectures.base import Architecture
from hf_posswap.architectures.discovery import core_path, rotary_modules, stock_class_of
from hf_posswap.architectures.rotary import WIDE_LAYERS
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes import SchemeConfig, SchemeLayer, check_supported
from hf_posswap.schemes.base import ModelFacts, Scheme
from hf_posswap.schemes.support import in_entry
from hf_posswap.swapped.angles import SwappedRotary, Turn
from hf_posswap.swapped.modules import SwappedAttention, SwappedBaseModel
from hf_posswap.swapped.offloading import device_of, in_memory
from hf_posswap.swapped.replaced import is_replaced
from hf_posswap.swapped.starting import mark_started
from hf_posswap.swapped.written import WrittenAttention

SMALL_SCHEME = 2**28
"""Number of parameters that a scheme may have in a model of any size: 1 GiB in float32."""

OWN = (Scheme, SchemeLayer, RetiredTable)
"""Types of the modules that a swap adds to a model."""

ToSwapped = Callable[..., type]
"""Maps a stock class and a mixin to the swapped class."""


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The changes of a swap to one attention module.

    Attributes:
        module: the module.
        new_class: its new class.
        layer: the scheme's layer for the module.
        part: number of the scheme's part that `layer` belongs to, see `Scheme.parts`.
        turn: replaces the rotary angles in the arguments; None: angles stay unchanged.
        views: whether the module runs our attention function instead of the stock one.
    """

    module: nn.Module
    new_class: type
    layer: SchemeLayer
    part: int
    turn: Turn | None
    views: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """All changes of a swap. The plan is complete before the model is changed.

    Attributes:
        config: the resolved config.
        scheme: the module for the core.
        core: the module that reads the tokens.
        core_class: its new class.
        layers: the changes to each attention module.
        retired: name of the position table and the module that replaces it; None if the model has no table or keeps it.
        rotary: the rotary module whose angles no layer reads, its new class, and the width of its angles; None if there
            is none.
    """

    config: SchemeConfig
    scheme: Scheme
    core: Any
    core_class: type
    layers: list[LayerPlan]
    retired: tuple[str, RetiredTable] | None
    rotary: tuple[Any, type, int] | None


def core_of(model: Any) -> Any:
    """Return the module of a model that reads the tokens and computes positions: in most families the base model."""
    for module in model.modules():
        if isinstance(module, SwappedBaseModel):
            return module
    base: Any = getattr(model, "base_model", model)
    path = core_path(base)
    return base.get_submodule(path) if path else base


def plan_swap(model: Any, architecture: Architecture, config: SchemeConfig, to_swapped: ToSwapped) -> Plan:
    """Make the modules and classes of a swap; the model does not change.

    Args:
        model: the model, stock or swapped, with or without a head.
        architecture: its architecture.
        config: the scheme's options, not yet resolved.
        to_swapped: see `ToSwapped`.

    Raises:
        UnsupportedError: the model cannot use the scheme.
        SchemeConfigError: the model cannot use the scheme with these options.
    """
    core = core_of(model)
    embeddings = core.get_input_embeddings()
    with in_memory(embeddings, architecture.position_table(core)):
        facts = architecture.facts(core)
        resolved = config.resolve(facts)
        check_supported(resolved, facts)
        _check_size(core, resolved, facts)
        scheme = resolved.scheme_type()(resolved, facts)
        retired = _plan_table(core, architecture, resolved, scheme, facts)
    dtype = core.dtype  # read once, because transformers searches all weights for it
    _match(scheme, dtype=dtype, device=device_of(embeddings))
    layers = []
    mixin = WrittenAttention if architecture.writes_attention else SwappedAttention
    for number, part in enumerate(scheme.parts):
        with in_entry(number, part.name, scheme.parts):
            planned = _plan_layers(core, architecture, part, facts, resolved)
        for module, layer, turn in planned:
            layer.takes(part.config.window, max(2, facts.train_length) if part.config.log_n else None)
            _match(layer, dtype=dtype, device=device_of(module))
            _check_forward(module)
            new_class = to_swapped(stock_class_of(module), mixin)
            layers.append(LayerPlan(module, new_class, layer, number, turn, layer.enters_attention))
    _check_forward(core)
    core_class = to_swapped(stock_class_of(core), SwappedBaseModel)
    rotary = _plan_rotary(core, architecture, layers, to_swapped)
    return Plan(resolved, scheme, core, core_class, layers, retired, rotary)


def _plan_table(
    core: Any, architecture: Architecture, config: SchemeConfig, scheme: Scheme, facts: ModelFacts
) -> tuple[str, RetiredTable] | None:
    """Return the name of the position table and the module that replaces it; None if no table is removed."""
    if facts.native_table is None or config.keep_native:
        return None
    path, first_row = architecture.table_path(core), architecture.first_row(core)
    table = architecture.position_table(core)
    assert path is not None
    assert table is not None
    learns = rest_learns(core, table)
    mean = None
    if isinstance(table, RetiredTable):
        mean = table.weight if table.use_mean else None
        table = table.revive(learns)
    assert isinstance(table, nn.Embedding)
    retired = RetiredTable(table, first_row, use_mean=not scheme.brings_whole_table(), rest_learns=learns)
    if mean is not None and retired.use_mean:  # healing may have trained it
        with torch.no_grad():
            retired.weight.copy_(mean)
    if not retired.table.is_meta:
        mark_started(retired)
    return path, retired


def rest_learns(core: Any, table: nn.Module) -> bool:
    """Return whether any weight of a core requires a gradient, except those of its position table and of schemes."""
    own = [table, *(module for module in core.modules() if isinstance(module, OWN))]
    skipped = {weight for module in own for weight in module.parameters()}
    return any(weight.requires_grad for weight in core.parameters() if weight not in skipped)


def _check_size(base: Any, config: SchemeConfig, facts: ModelFacts) -> None:
    """Refuse a scheme that is larger than the model, before memory is allocated. The options may come from a file.

    Raises:
        SchemeConfigError: the scheme would have more parameters than the model and more than `SMALL_SCHEME`.
    """
    table = facts.native_table
    if table is not None:
        facts = dataclasses.replace(facts, native_table=table.to("meta"))
    try:
        with torch.device("meta"):
            scheme = config.scheme_type()(config, facts)
            parts: list[tuple[nn.Module, int]] = [(scheme, 1)]
            for part in scheme.parts:
                layers = len(part.config.layers or range(facts.num_layers)) if part.acts_in_layers else 0
                parts.append((part.make_layer(0), layers))
        size = sum(weight.numel() * times for module, times in parts for weight in module.parameters())
    except RuntimeError as error:  # torch raises it for sizes that overflow its integers
        raise SchemeConfigError(f"scheme {config.name!r} would be too large to exist with these options.") from error
    if size <= SMALL_SCHEME:
        return  # without iterating over all weights of the model
    allowed = max(SMALL_SCHEME, sum(weight.numel() for weight in base.parameters()))
    if size > allowed:
        options = {key: value for key, value in config.to_dict().items() if key != "name" and value is not None}
        raise SchemeConfigError(
            f"scheme {config.name!r} would have {size:,} parameters with these options, more than {allowed:,}, which "
            f"is taken for a mistake. Lower what makes it large: {reprlib.repr(options)}."
        )


def scheme_keys(model: nn.Module) -> dict[str, torch.Size]:
    """Return the entries of a swapped model's state dict that its swap added: their names and shapes."""
    parts = [(name, module) for name, module in model.named_modules() if isinstance(module, OWN)]
    return {
        ".".join(filter(None, (name, key))): value.shape
        for name, module in parts
        for key, value in module.state_dict().items()
    }


def _plan_layers(
    core: Any, architecture: Architecture, scheme: Scheme, facts: ModelFacts, whole: SchemeConfig
) -> list[tuple[nn.Module, SchemeLayer, Turn | None]]:
    """Return the attention modules that a scheme changes, each with the scheme's layer and the change to its angles.

    Args:
        core: the module that reads the tokens.
        architecture: its architecture.
        scheme: the scheme, or one of the parts of a composition.
        facts: the model's properties.
        whole: the config of the whole scheme, with all its parts.

    Raises:
        UnsupportedError: the model cannot use the scheme with these options.
        SchemeConfigError: the scheme's layers have no attention of their own.
    """
    config = scheme.config
    rotary = architecture.rotary(core)
    layout = None if rotary is None else rotary.layout
    neutral = None if config.keep_native else Turn(layout)
    modules = list(architecture.attention_modules(core))
    if architecture.native_bias(core) is not None and (whole.keep_native or whole.layers is not None):
        raise UnsupportedError(
            f"{facts.architecture!r} adds a bias of its own to its scores in all layers, which can be replaced as a "
            "whole only. Leave out keep_native, and name all layers or none."
        )
    if not scheme.acts_in_layers:
        # The scheme enters at the embeddings. If the stock mechanism is in the layers, it must be removed there.
        leaves_out = (facts.native_table is None or architecture.writes_attention) and not config.keep_native
        return [(module, SchemeLayer(), neutral) for _, module in modules] if leaves_out else []
    chosen = [(index, module) for index, module in modules if config.layers is None or index in config.layers]
    if not chosen:
        raise SchemeConfigError(
            f"scheme {config.name!r} would act nowhere: of its layers {reprlib.repr(list(config.layers or ()))} none "
            f"has attention of its own. Attention that it can enter is in layers {[index for index, _ in modules]}."
        )
    if not scheme.enters_as_angles():
        if scheme.turns_keys() and not (config.keep_native or facts.turns_whole_heads):
            raise UnsupportedError(
                f"scheme {config.name!r} cannot enter {facts.architecture!r} ({facts.mode}): with these options it "
                "turns keys otherwise than the model's own rotation does, which only models that turn every head whole "
                "take, such as Llama. Choose a scaling such as yarn or linear; leave out interleaved, fourier_sums and "
                "frequencies='chosen'; leave out partial_rotary_factor, or give the model's own."
            )
        return [(module, scheme.make_layer(index), neutral) for index, module in chosen]
    own = None if scheme.is_native() else Turn(layout, own=True)
    if rotary is not None and rotary.wide_only:
        # Layers with a sliding window have angles of their own, for distances inside the window; these angles stay.
        kinds = core.config.layer_types
        kept = Turn(layout, keeps=True)
        return [(module, SchemeLayer(), own if kinds[index] == WIDE_LAYERS else kept) for index, module in chosen]
    return [(module, SchemeLayer(), own) for _, module in chosen]


def _plan_rotary(
    core: Any, architecture: Architecture, layers: list[LayerPlan], to_swapped: ToSwapped
) -> tuple[nn.Module, type, int] | None:
    """Return `Plan.rotary`: every attention module replaces its angles, so that nothing reads those of the module."""
    rotary, modules = architecture.rotary(core), [module for _, module in rotary_modules(core)]
    if rotary is None or rotary.width is None or len(modules) != 1 or is_replaced(modules[0]):
        return None
    replaces = {entry.module for entry in layers if entry.turn is not None and not entry.turn.keeps}
    if any(module not in replaces for _, module in architecture.attention_modules(core)):
        return None
    return modules[0], to_swapped(stock_class_of(modules[0]), SwappedRotary), rotary.width


def _match(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Convert new parameters to the model's dtype and device; on the meta device they have no values."""
    if device.type == "meta":
        module.to_empty(device=device)
    else:
        mark_started(module)
    module.to(dtype=dtype, device=device)


def _check_forward(module: nn.Module) -> None:
    """Refuse a module whose forward was replaced on the instance, because a change of its class would have no effect.

    Accelerate's hooks also replace it on the instance. They store the forward that they call, and `_retype` replaces
    the stored forward.

    Raises:
        UnsupportedError: another tool replaced the forward.
    """
    if is_replaced(module):
        raise UnsupportedError(
            f"the forward of {type(module).__name__} was replaced on the instance by another tool, so a swap would not "
            "take effect. Swap before that tool patches the model, or load the model anew."
        )

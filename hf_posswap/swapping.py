"""Swap the positional scheme of a model, or restore the stock one, in place."""

from contextlib import suppress
from typing import Any

from torch._dynamo import OptimizedModule
from transformers import PreTrainedModel

from hf_posswap.architectures import Architecture, architecture_of
from hf_posswap.architectures.discovery import STOCK_LENGTH, state_length, stock_class_of
from hf_posswap.errors import AlreadySwappedError, NotSwappedError, UnsupportedError
from hf_posswap.loading.configuration import config_class_of, mark_swapped, stock_config_class
from hf_posswap.loading.entry import healed_before, is_healed, make_entry
from hf_posswap.loading.origin import origin_of
from hf_posswap.modeling import register_models, swapped_class
from hf_posswap.schemes import SchemeConfig, as_config
from hf_posswap.swapped.applying import apply_plan, give_own_config, remove_scheme, undone_on_error
from hf_posswap.swapped.modules import longest_position_of
from hf_posswap.swapped.plan import Plan, core_of, plan_swap
from hf_posswap.swapped.proof import can_run, check_undivided, prove, stock_outputs
from hf_posswap.swapped.questions import config_of, is_swapped, plain_model, planned_path
from hf_posswap.swapped.stated_length import state_own_length


def swap(
    model: Any,
    pos_scheme: str | dict[str, Any] | SchemeConfig | list[Any],
    *,
    replace: bool = False,
    verify: bool = True,
) -> Any:
    """Swap the positional mechanism of a model, in place.

    The scheme's parameters, if it has any, start as in the scheme's paper. `hf_posswap.calibrate` then fits them to the
    attention of the stock model; `from_pretrained(..., pos_scheme=..., calibration=texts)` does both.

    Args:
        model: a transformers model of a supported architecture, with or without a head.
        pos_scheme: a scheme's name ("alibi", "rope:yarn:factor=4"), a dict with "name" and options, or a config object;
            or a list of those, for several schemes that act in different layers.
        replace: replace a scheme that was swapped in before.
        verify: prove by a few short forwards that the swap takes effect, see `hf_posswap.swapped.proof`. A model
            whose weights are not in memory is not run.

    Returns:
        The same model. Its class, its config's class and the modules concerned have changed. Its config is a copy, so
        that other models made from the same config do not change.

    Raises:
        UnknownNameError: no such scheme.
        SchemeConfigError: a bad option.
        UnsupportedError: the architecture is not supported, or cannot take the scheme; the reason is given.
        AlreadySwappedError: the model is swapped and `replace` is not set.
        UnsupportedError: a part of a swapped model, or a model around a swapped part, is to be swapped anew.
        BackendError: the model's attention backend cannot carry the scheme. Nothing has changed after any of these.
    """
    config = as_config(pos_scheme)
    architecture = architecture_of(config_of(model))
    _check_plain(model, architecture)
    _check_whole(model)
    if is_swapped(model) and not replace:
        entry = model.config.pos_scheme
        raise AlreadySwappedError(
            f"the model has scheme {entry['name']!r} already, swapped in for {entry['native']!r}. Pass replace=True to "
            f"put {config.name!r} in its place, or call hf_posswap.restore(model) first."
        )
    new_class = swapped_class(stock_class_of(model))
    plan = plan_swap(model, architecture, config, swapped_class)
    planned_path(plan, model)
    _carry_out(model, architecture, plan, new_class, verify, replaced=is_swapped(model))
    return model


def _carry_out(
    model: Any, architecture: Architecture, plan: Plan, new_class: type, verify: bool, replaced: bool
) -> None:
    """Apply a plan and prove it; undo a swap whose proof fails."""
    runs = verify and can_run(model, plan.core)
    limits = [architecture.train_length(plan.core) if architecture.table_path(plan.core) is not None else None]
    before = stock_outputs(model, plan.core, limits[0]) if runs and not replaced else None
    runs = runs and (replaced or before is not None)
    with undone_on_error(model):
        if not replaced:
            give_own_config(model)
        apply_plan(model, architecture, plan)
        if model is not plan.core:
            model.__class__ = new_class
        _mark(model, architecture, plan)
        if runs:
            limits.append(longest_position_of(plan.core))
            known = [limit for limit in limits if limit is not None]
            with suppress(ImportError):  # the attention backend is not installed, so the model cannot run here
                plan.core.pos_proof = prove(model, architecture, before, min(known) if known else None)


def _check_plain(model: Any, architecture: Architecture) -> None:
    """Refuse anything but a plain model of the family: a wrapper, another config, a model with adapters."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(
            f"{type(model).__module__}.{type(model).__name__} is no transformers model but wraps one. Swap the "
            "transformers model first; then wrap, adapt or compile it."
        )
    check_undivided(model)
    if vars(model).get("peft_config"):
        raise UnsupportedError(
            f"the model has adapters {list(model.peft_config)}, made for the scheme it has now. Swap first, then "
            "adapt; peft's merge_and_unload() or unload() makes a model plain again."
        )
    expected = stock_config_class(architecture)
    if type(model.config) not in (expected, config_class_of(architecture)):
        raise UnsupportedError(
            f"the model's config is a {type(model.config).__name__}, not a {expected.__name__}: it may mean something "
            f"else by the same names. Supported: models with a {expected.__name__}."
        )


def _check_whole(model: Any) -> None:
    """Refuse a part of a swapped model, or a model around a swapped part: the rest would keep its classes."""
    whole = vars(core_of(model)).get("pos_whole")
    if whole not in (None, stock_class_of(model)):
        raise UnsupportedError(
            f"the scheme was swapped into a {whole.__name__}, and this is a {stock_class_of(model).__name__}, which "
            f"shares modules with it: the classes and the config of the rest would not follow. Hand over the "
            f"{whole.__name__} itself, and take parts of it afterwards."
        )


def restore(model: Any) -> Any:
    """Give a swapped model its stock mechanism, modules and classes back, in place.

    The result is the stock model bit for bit, unless its weights were trained by code that does not record it.

    Args:
        model: the model that was swapped, or what `torch.compile` made of it.

    Returns:
        The same model.

    Raises:
        NotSwappedError: the model is not swapped.
        UnsupportedError: it is a part of the model that was swapped, or a wrapper around it, such as peft's adapters;
            or it was healed, so that its weights fit its scheme and not the stock mechanism.
    """
    if isinstance(model, OptimizedModule):
        restore(model._orig_mod)
        return model
    architecture = architecture_of(config_of(model))
    if not is_swapped(model):
        raise NotSwappedError(
            f"the model is a stock {type(model).__name__}: there is nothing to restore. "
            "hf_posswap.swap(model, scheme) swaps; is_swapped(model) tells."
        )
    if plain_model(model) is not model:
        raise UnsupportedError(
            f"the model is in a {type(model).__name__} with adapters {list(model.peft_config)}, made for the scheme it "
            "has now. peft's unload() or merge_and_unload() gives the model itself; restore that."
        )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(
            f"{type(model).__module__}.{type(model).__name__} is no transformers model but wraps one. Restore the "
            "transformers model inside it."
        )
    _check_whole(model)
    if is_healed(model.config):
        raise UnsupportedError(
            f"{healed_before(model.config)} Load that one anew; swap(model, scheme, replace=True) gives this one "
            "another scheme."
        )
    remove_scheme(core_of(model), architecture)
    if "stock_class" in vars(type(model)):
        model.__class__ = type(model).stock_class
    config = model.config
    config.__class__ = stock_config_class(architecture)
    state_length(config, config.pos_scheme[STOCK_LENGTH])
    for name in ("pos_scheme", "auto_map"):
        vars(config).pop(name, None)
    return model


def _mark(model: Any, architecture: Architecture, plan: Plan) -> None:
    """Record the swap in the class of the config and in its entry."""
    config = model.config
    previous = getattr(config, "pos_scheme", None)
    origin = origin_of(model).to_entry() if previous is None else previous
    mark_swapped(config, architecture, make_entry(plan.config, plan.scheme.facts.native, origin))
    state_own_length(model)
    register_models(architecture)
    _forget_gguf(model)


def _forget_gguf(model: Any) -> None:
    """Remove the marks of a GGUF file from a model whose weights transformers has already converted to floats.

    transformers still treats such a model as quantised and refuses to save it.
    """
    method = getattr(getattr(model, "quantization_method", None), "value", getattr(model, "quantization_method", None))
    if method != "gguf":
        return
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    for name in ("quantization_config", "_is_quantized"):
        vars(model.config).pop(name, None)

"""The swapped classes: made once per stock class, found by name, saved and loaded like any other.

`PosSwapGPT2LMHeadModel` is `GPT2LMHeadModel` with the mixin below. These classes are not written in source code: this
module makes each one when it is first requested, so that pickle, the Hub's remote code and `from hf_posswap.modeling
import …` find it here.
"""

import copyreg
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from hf_posswap.architectures import Architecture, architecture_named
from hf_posswap.architectures.model_types import package_of
from hf_posswap.common.names import CLASS_PREFIX
from hf_posswap.errors import CheckpointError, UnsupportedError
from hf_posswap.loading.auto_classes import auto_classes
from hf_posswap.loading.configuration import config_class_of, register_config, stock_config_class
from hf_posswap.loading.entry import config_from_entry, make_entry
from hf_posswap.swapped.applying import apply_plan, give_own_config
from hf_posswap.swapped.direction import check_direction
from hf_posswap.swapped.modules import SwappedBaseModel
from hf_posswap.swapped.paged import check_continuous_batching
from hf_posswap.swapped.plan import core_of, plan_swap, scheme_keys
from hf_posswap.swapped.proof import prove_loaded
from hf_posswap.swapped.starting import start_scheme, table_for_its_owner
from hf_posswap.swapped.stated_length import state_own_length, stating_stock_length

HUB_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
"""Arguments that `save_pretrained(push_to_hub=True)` passes on to `push_to_hub`."""


class SwappedModel:
    """Mixin for every model class: builds the stock model, then swaps the scheme of its config in.

    The ignored type errors are due to mypy, which does not know the stock class that a mixin is combined with.
    """

    stock_class: ClassVar[type[PreTrainedModel]]
    architecture: ClassVar[Architecture]
    pos_publish: ClassVar[Callable[..., Any]]
    """Uploads a model; `hf_posswap` assigns it, because the hub package imports this module."""
    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        with stating_stock_length(config):
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if config.pos_scheme is None:
            raise CheckpointError(
                f"the config of {type(self).__name__} has no pos_scheme entry, so there is nothing to swap in. Load "
                "the stock model and call hf_posswap.swap(model, scheme), or give the config a pos_scheme."
            )
        named = config_from_entry(config.pos_scheme)
        plan = plan_swap(self, self.architecture, named, swapped_class)
        if plan.config != named:  # options that were left open are resolved from this model, and hold for no other
            give_own_config(self)
            self.config.pos_scheme = make_entry(plan.config, plan.scheme.facts.native, config.pos_scheme)
        apply_plan(self, self.architecture, plan)
        state_own_length(self)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a swapped checkpoint as transformers does, from safetensors only.

        Raises:
            CheckpointError: the checkpoint lacks weights of the scheme, or has its base model under another name than
                this class: transformers would initialise them at random.
            OSError: it has no safetensors, the only format in which swapped models are saved.
        """
        kwargs["use_safetensors"] = True
        load = super().from_pretrained  # type: ignore[misc]
        model, report = load(*args, output_loading_info=True, **kwargs)
        _check_prefix(model, report)
        lacking = sorted(scheme_keys(model).keys() & set(report["missing_keys"]))
        if lacking:
            raise CheckpointError(
                f"the checkpoint lacks {len(lacking)} weights of scheme {model.config.pos_scheme['name']!r}: "
                f"{', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}. It is cut short, or was not saved from "
                "a swapped model: get it from where it was made, or load the stock model and swap that."
            )
        prove_loaded(model)
        return (model, report) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the model as transformers does; with `push_to_hub=True` upload it too, see `push_to_hub`.

        Raises:
            CheckpointError: the config's entry was edited and no longer describes the model's scheme.
            UnsupportedError: the config was changed between causal and bidirectional attention since the swap.
        """
        check_direction(core_of(self))
        _require_own_scheme(self)
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs} if push_to_hub else {}
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if push_to_hub and (args[0] if args else kwargs.get("is_main_process", True)):
            repo_id = hub.pop("repo_id", None) or Path(save_directory).resolve().name
            known = {name: kwargs[name] for name in ("max_shard_size", "token") if name in kwargs}
            self.push_to_hub(repo_id, **hub, **known)

    def initialize_weights(self, *args: Any, **kwargs: Any) -> Any:
        """Initialise the weights that have no value yet, including the scheme's, as transformers does."""
        start_scheme(self)
        # Buffers of some families are as long as the config's positions.
        with table_for_its_owner(self), stating_stock_length(self.config):
            return super().initialize_weights(*args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Begin continuous batching as transformers does; `generate_batch` and a paged cache in `generate` call this.

        Raises:
            UnsupportedError: the scheme takes part in attention, see `hf_posswap.swapped.paged`.
        """
        check_continuous_batching(core_of(self))
        return super().init_continuous_batching(*args, **kwargs)  # type: ignore[misc]

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload the model to the Hub as transformers does, with a model card that describes the swap.

        Args:
            repo_id: "owner/name", or a name of your own.
            kwargs: see `hf_posswap.hub.push_model`, which has the arguments of transformers' method.
        """
        return self.pos_publish(self, repo_id, **kwargs)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers reads the source file of the class for this, so the stock class is asked.
        return cls.stock_class._can_set_attn_implementation()

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: the remote-code file is written by the config and must not be replaced by a copy of this one."""


def _check_prefix(model: Any, report: dict[str, Any]) -> None:
    """Refuse a checkpoint whose base model has another name than in the class that loaded it; raise `CheckpointError`.

    The name differs between heads of some families: transformers initialises all weights of a
    `LlamaForQuestionAnswering` at random if they were saved from a `LlamaForCausalLM`.
    """
    own = "" if model.base_model is model else f"{model.base_model_prefix}."
    missing = {key.removeprefix(own) for key in report["missing_keys"] if key.startswith(own)}
    for key in report["unexpected_keys"]:
        name, _, rest = key.partition(".")
        if rest in missing:
            kind, place = type(model).__name__, f"under {own[:-1]!r}" if own else "without a name before them"
            saved = ", ".join(model.config.architectures or []) or "the class it was saved from"
            raise CheckpointError(
                f"the checkpoint has the weights of its base model under {name!r}, and {kind} looks for them {place}: "
                f"none would be loaded. Load the checkpoint as {saved}, save its base model by "
                f"model.base_model.save_pretrained(folder), and load {kind} from there."
            )


def _require_own_scheme(model: Any) -> None:
    """Refuse a model whose config names another scheme than the one in it; raise `CheckpointError`."""
    scheme = core_of(model).pos_scheme
    named = config_from_entry(model.config.pos_scheme)
    if named.name != scheme.name or named.resolve(scheme.facts) != scheme.config:
        raise CheckpointError(
            f"the config's pos_scheme says {named.to_dict()}, and the model has {scheme.config.to_dict()}. Editing the "
            "config changes no model: swap(model, scheme, replace=True) does, and writes the entry."
        )


class SwappedType(type):
    """Type of the swapped classes, so that pickle stores them by their stock class."""

    stock_class: Any
    pos_mixin: Any


def swapped_class(stock: Any, mixin: Any = None) -> Any:
    """Return the swapped class of a stock class; a swapped class is returned as it is.

    A model that reads the tokens itself, and so has a mixin, is a subclass of the swapped model without one.

    Args:
        stock: a stock class of a model, or of a module in one.
        mixin: what a swap adds to it.
    """
    return stock if "stock_class" in vars(stock) else _made(stock, mixin)


@cache
def _made(stock: Any, mixin: Any) -> Any:
    namespace: dict[str, Any] = {
        "stock_class": stock, "pos_mixin": mixin, "__module__": __name__, "__doc__": _doc_of(stock),
    }  # fmt: skip
    if not issubclass(stock, PreTrainedModel):
        return SwappedType(CLASS_PREFIX + stock.__name__, (mixin, stock), namespace)
    bases: tuple[type, ...] = (SwappedModel, stock)
    if mixin is None:
        architecture = _architecture_of(stock)
        namespace |= {"architecture": architecture, "config_class": config_class_of(architecture)}
    else:
        bases = (mixin, swapped_class(stock))
        namespace["stock_arguments"] = tuple(inspect.signature(stock.forward).parameters)[1:]
        namespace["forward"] = _with_signature(stock)
    made = SwappedType(CLASS_PREFIX + stock.__name__, bases, namespace)
    _let_outputs_be_recorded(made)
    _share_conversions(stock.__name__, made.__name__)
    return made


copyreg.pickle(SwappedType, lambda made: (swapped_class, (made.stock_class, made.pos_mixin)))


def _share_conversions(stock: str, swapped: str) -> None:
    """Register the stock model's conversions of weights on loading for a swapped class or model type, too.

    transformers saves a model that it converted while loading in the original format. Loaded without the conversion,
    the output embedding of GPT-NeoX and the experts of many models would be random.
    """
    conversions = get_checkpoint_conversion_mapping(stock)
    if conversions is not None:
        register_checkpoint_conversion_mapping(swapped, conversions, overwrite=True)


def _let_outputs_be_recorded(model_class: Any) -> None:
    """Add a class to the table behind `output_attentions` and `output_hidden_states`.

    transformers does this when it constructs a model of the class; a swap in place constructs none. In all supported
    versions the table is a dict keyed by the class's string, whatever its own `__setitem__` takes.
    """
    dict.__setitem__(_CAN_RECORD_REGISTRY, str(model_class), model_class._can_record_outputs)


def _with_signature(stock: Any) -> Any:
    """Return a forward with the stock signature, which generation and Trainer inspect."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return SwappedBaseModel.forward(self, *args, **kwargs)

    forward.__doc__ = stock.forward.__doc__
    forward.__signature__ = inspect.signature(stock.forward)  # type: ignore[attr-defined]
    return forward


def _doc_of(stock: type) -> str:
    return f"`{stock.__name__}` with the positional scheme that its config names; see `hf_posswap`."


def _architecture_of(stock: Any) -> Architecture:
    model_type = getattr(stock.config_class, "model_type", "")
    if not stock.__module__.startswith(f"{package_of(model_type)}." if model_type else "transformers.models."):
        raise UnsupportedError(
            f"{stock.__module__}.{stock.__name__} is no class of transformers' own for model type {model_type!r}. A "
            "subclass of yours has to be swapped through the stock class."
        )
    return architecture_named(model_type)


@cache
def register_models(architecture: Architecture) -> None:
    """Register an architecture's swapped model classes, and its tokenizer, with the Auto classes.

    Called when the first swapped config of the architecture appears, so that importing hf_posswap imports no model.
    """
    register_config(architecture)
    config_class = config_class_of(architecture)
    _share_conversions(architecture.name, str(vars(config_class)["model_type"]))
    for auto_name, stock_name in auto_classes(architecture).items():
        auto: Any = getattr(transformers, auto_name)
        auto.register(config_class, swapped_class(architecture.model_class(stock_name)), exist_ok=True)
    stock_config = stock_config_class(architecture)
    if stock_config in TOKENIZER_MAPPING:
        TOKENIZER_MAPPING.register(config_class, TOKENIZER_MAPPING[stock_config], exist_ok=True)


def __getattr__(name: str) -> type:
    """Make the swapped class of that name, such as `PosSwapGPT2Model`."""
    stock = getattr(transformers, name.removeprefix(CLASS_PREFIX), None) if name.startswith(CLASS_PREFIX) else None
    if isinstance(stock, type) and issubclass(stock, PreTrainedModel):
        return swapped_class(stock)
    if isinstance(stock, type) and issubclass(stock, PreTrainedConfig):
        architecture = architecture_named(str(vars(stock)["model_type"]))
        register_models(architecture)
        return config_class_of(architecture)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Drop-in Auto classes that take `pos_scheme=`, and `install()`, which adds it to transformers' own."""

from collections.abc import Callable
from functools import cache, wraps
from types import TracebackType
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from hf_posswap.architectures import architecture_of
from hf_posswap.architectures.base import RELATIVE_TABLES_LOST, relative_kind
from hf_posswap.calibration import CalibrationError, calibrate, document_windows
from hf_posswap.common.registry import unknown_name_message
from hf_posswap.errors import SchemeConfigError, UnknownNameError, UnsupportedError
from hf_posswap.loading.auto_classes import auto_model_classes
from hf_posswap.loading.entry import mark_healed
from hf_posswap.loading.origin import remember_source
from hf_posswap.loading.relative_tables import give_relative_tables, read_relative_tables, relative_scheme
from hf_posswap.schemes import as_config, list_schemes
from hf_posswap.swapped.offloading import is_offloaded
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import train_length
from hf_posswap.swapping import swap

NATIVE = "native"
"""Value of `pos_scheme` that asks for the relative tables of a checkpoint."""
CALIBRATION_LENGTH = 512
"""Tokens of a window of calibration on plain texts; the train length if that is shorter."""


def load_and_swap(
    load: Callable[..., Any], *args: Any, pos_scheme: Any = None, calibration: Any = None, **kwargs: Any
) -> Any:
    """Load a model by `load` and swap its positional mechanism; without `pos_scheme` only load.

    Args:
        load: a `from_pretrained` or `from_config`; receives all other arguments, so that dtype, device_map,
            quantisation, gguf_file, revision and the others work as in transformers.
        args: positional arguments for `load`.
        pos_scheme: see `hf_posswap.swap`; checked before anything is loaded. "native": the relative tables of a
            checkpoint that transformers no longer reads, as scheme `shaw`.
        calibration: texts to calibrate the scheme on (see `hf_posswap.calibrate`): a list of strings, each a separate
            document of any length, read with the tokenizer of the same name, or batches of token ids (B, L), such as
            a DataLoader's. None: do not calibrate.
        kwargs: keyword arguments for `load`.

    Returns:
        What `load` returns, with its model swapped.

    Raises:
        UnsupportedError: without `pos_scheme`, the model has relative tables that transformers has left out.
    """
    if pos_scheme is None:
        if calibration is not None:
            raise SchemeConfigError("calibration= fits a scheme that is swapped in: give pos_scheme= too.")
        loaded = load(*args, **kwargs)
        _refuse_lost_tables(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded
    config = None if pos_scheme == NATIVE else as_config(pos_scheme)
    loaded = load(*args, **kwargs)
    stock = loaded[0] if isinstance(loaded, tuple) else loaded
    if args:
        remember_source(stock, args[0], kwargs)
    model = _with_relative_tables(stock, args, kwargs) if config is None else swap(stock, config)
    if calibration is not None:
        items = _items(calibration)
        texts = any(isinstance(item, str) for item in items)
        tokenizer = _tokenizer(args, kwargs) if texts else None
        calibrate(model, _batches(items, model, tokenizer), tokenizer=tokenizer)
    return loaded


def _refuse_lost_tables(model: Any) -> None:
    """Refuse a model that transformers reads as another one without a word; raise `UnsupportedError`."""
    kind = relative_kind(model.config)
    if kind is not None:
        raise UnsupportedError(
            f"{model.name_or_path or 'the model'}: its config says position_embedding_type {kind!r}. "
            f"{RELATIVE_TABLES_LOST} transformers' own Auto classes load it without its tables."
        )


def _with_relative_tables(stock: Any, args: tuple[Any, ...], loading: dict[str, Any]) -> Any:
    """Give a model that transformers loaded without its relative tables those tables, as scheme `shaw`.

    Raises:
        SchemeConfigError: the model has no relative tables, or comes from a config, which has no tables.
        CheckpointError: the checkpoint has no tables.
        UnsupportedError: the weights are not in memory.
    """
    scheme = relative_scheme(stock.config)
    if scheme is None:
        raise SchemeConfigError(
            f"pos_scheme={NATIVE!r} is for checkpoints whose relative tables transformers no longer reads "
            "(position_embedding_type 'relative_key' or 'relative_key_query' in their config). This is none: leave "
            f"pos_scheme out to load it as it is, or name a scheme. Allowed names: {', '.join(list_schemes())}."
        )
    name = args[0] if args else loading.get("pretrained_model_name_or_path")
    if name is None or isinstance(name, PreTrainedConfig):
        raise SchemeConfigError(
            f"pos_scheme={NATIVE!r} reads relative tables from a checkpoint, and a config has none. Load by "
            "from_pretrained(name, pos_scheme='native')."
        )
    core = core_of(stock)
    if is_offloaded(stock) or any(weight.is_meta for weight in core.parameters()):
        raise UnsupportedError("relative tables are put into weights in memory. Load the model without offloading it.")
    kind = stock.config.position_embedding_type
    stock.config.position_embedding_type = "absolute"  # what transformers has made, and what a swap starts from
    architecture = architecture_of(stock.config)
    tables = read_relative_tables(stock, core, architecture, name, loading, kind)
    model = swap(stock, scheme)
    give_relative_tables(core, architecture.position_table(core), tables)
    mark_healed(model.config)  # the weights belong to the tables: without them there is no model to go back to
    return model


def _items(calibration: Any) -> list[Any]:
    """Return the given texts or batches as a list.

    Raises:
        CalibrationError: the value is neither.
    """
    if not hasattr(calibration, "__iter__") and not hasattr(calibration, "__getitem__"):
        raise CalibrationError(
            f"calibration is a {type(calibration).__name__}. Give a text, several, or batches of token ids (B, L)."
        )
    return [calibration] if isinstance(calibration, str) else list(calibration)


def _tokenizer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    known = {key: kwargs[key] for key in ("gguf_file", "revision", "subfolder", "token") if key in kwargs}
    return AutoTokenizer.from_pretrained(*args[:1], **known)


def _batches(items: list[Any], model: Any, tokenizer: Any) -> list[Tensor]:
    """Return token ids from strings, each a document of its own, from tensors, or dictionaries with "input_ids"."""
    texts = [item for item in items if isinstance(item, str)]
    length = min(CALIBRATION_LENGTH, train_length(model))
    windows = document_windows(tokenizer, texts, length) if texts else []
    others = (item for item in items if not isinstance(item, str))
    return [*windows, *(item if isinstance(item, Tensor) else _without_padding(item) for item in others)]


def _without_padding(batch: Any) -> Tensor:
    """Return a batch's token ids, (B, L).

    Raises:
        CalibrationError: some of them are padding, which calibration would treat as text.
    """
    mask = batch.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise CalibrationError(
            f"a batch to calibrate on has padding: {int((mask == 0).sum())} of its {mask.numel()} tokens. Give texts "
            "of one length, or strings, which are cut into windows."
        )
    return batch["input_ids"]


class PosSwapAuto:
    """Mixin that gives a transformers Auto class the argument `pos_scheme`.

    The ignored type errors are due to mypy, which does not know the stock class that a mixin is combined with.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, pos_scheme: Any = None, calibration: Any = None, **kwargs: Any) -> Any:
        """Load a pretrained model and swap its positional mechanism.

        Args:
            args: as in transformers.
            pos_scheme: a scheme's name ("alibi", "rope:yarn:factor=4"), a dict with "name" and options, or a config
                object such as `RopeConfig()`; or a list of those, for several schemes in different layers. "native":
                the checkpoint's own relative tables, which transformers no longer reads, as scheme `shaw`. None:
                exactly as in transformers; a checkpoint with such tables is refused.
            calibration: texts or batches of token ids to start the scheme's parameters from, see `load_and_swap`.
            kwargs: as in transformers.
        """
        load = super().from_pretrained  # type: ignore[misc]
        return load_and_swap(load, *args, pos_scheme=pos_scheme, calibration=calibration, **kwargs)

    @classmethod
    def from_config(cls, *args: Any, pos_scheme: Any = None, **kwargs: Any) -> Any:
        """Make a model with fresh weights from a stock config and swap its positional mechanism."""
        return load_and_swap(super().from_config, *args, pos_scheme=pos_scheme, **kwargs)  # type: ignore[misc]


@cache
def auto_class(name: str) -> type:
    """Return the drop-in for transformers' Auto class of that name, such as "AutoModelForCausalLM".

    Raises:
        UnknownNameError: transformers has no such Auto model class.
    """
    stock = auto_model_classes().get(name)
    if stock is None:
        raise UnknownNameError(unknown_name_message("Auto class", name, auto_model_classes()))
    return type(name, (PosSwapAuto, stock), {"__module__": "hf_posswap", "__doc__": stock.__doc__})


class Installation:
    """What `install()` returns: a context manager that undoes the installation on leaving."""

    def __enter__(self) -> "Installation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        uninstall()


_PATCHED: tuple[type, ...] = (_BaseAutoModelClass, PreTrainedModel)
_stock: dict[type, Any] = {}


def install() -> Installation:
    """Make `from_pretrained` of transformers' own Auto classes and concrete classes accept `pos_scheme=`.

    Without `install()` they raise a TypeError about the unknown argument. A second call has no effect. `uninstall()`
    undoes it, and so does leaving the returned context manager.
    """
    for owner in _PATCHED:
        if owner not in _stock:
            _stock[owner] = vars(owner)["from_pretrained"]
            owner.from_pretrained = classmethod(_taking_scheme(_stock[owner].__func__))  # type: ignore[attr-defined]
    return Installation()


def uninstall() -> None:
    """Undo `install()`; does nothing if it was not called."""
    for owner in list(_stock):
        owner.from_pretrained = _stock.pop(owner)  # type: ignore[attr-defined]


def _taking_scheme(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def from_pretrained(cls: type, *args: Any, pos_scheme: Any = None, calibration: Any = None, **kwargs: Any) -> Any:
        if pos_scheme is None and calibration is None:
            return function(cls, *args, **kwargs)
        return load_and_swap(function.__get__(cls), *args, pos_scheme=pos_scheme, calibration=calibration, **kwargs)

    return from_pretrained

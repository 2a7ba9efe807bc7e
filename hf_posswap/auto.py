"""Drop-in Auto classes that accept `pos_scheme=`, and `install()`, which adds the argument to transformers' classes."""

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
"""Value of `pos_scheme` that loads the relative tables of a checkpoint."""
CALIBRATION_LENGTH = 512
"""Number of tokens of a window when calibrating on strings; the train length if that is shorter."""


def load_and_swap(
    load: Callable[..., Any], *args: Any, pos_scheme: Any = None, calibration: Any = None, **kwargs: Any
) -> Any:
    """Load a model with `load` and swap its positional mechanism; without `pos_scheme`, only load the model.

    Args:
        load: a `from_pretrained` or `from_config`; receives all other arguments, so that dtype, device_map,
            quantisation, gguf_file, revision and the others work as in transformers.
        args: positional arguments for `load`.
        pos_scheme: see `hf_posswap.swap`; checked before the model is loaded. "native": the relative tables of the
            checkpoint, which transformers no longer loads, as scheme `shaw`. None: no swap.
        calibration: texts to calibrate the scheme on (see `hf_posswap.calibrate`). Either a list of strings, each a
            separate document of any length, tokenised with the model's tokenizer; or batches of token ids (B, L), such
            as those of a DataLoader. None: no calibration.
        kwargs: keyword arguments for `load`.

    Returns:
        The result of `load`, with its model swapped.

    Raises:
        SchemeConfigError: the scheme's options are invalid, or `calibration` is given without `pos_scheme`.
        CalibrationError: the texts cannot be used for calibration.
        UnsupportedError: the model cannot use the scheme; or, without `pos_scheme`, the model has relative tables that
            transformers does not load.
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
    """Refuse a model whose relative tables transformers silently ignores; raise `UnsupportedError`."""
    kind = relative_kind(model.config)
    if kind is not None:
        raise UnsupportedError(
            f"{model.name_or_path or 'the model'}: its config says position_embedding_type {kind!r}. "
            f"{RELATIVE_TABLES_LOST} transformers' own Auto classes load it without its tables."
        )


def _with_relative_tables(stock: Any, args: tuple[Any, ...], loading: dict[str, Any]) -> Any:
    """Swap scheme `shaw` into a model, with the relative tables of its checkpoint, which transformers did not load.

    Raises:
        SchemeConfigError: the model has no relative tables, or was made from a config, which has no tables.
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
    stock.config.position_embedding_type = "absolute"  # the model as transformers loaded it
    architecture = architecture_of(stock.config)
    tables = read_relative_tables(stock, core, architecture, name, loading, kind)
    model = swap(stock, scheme)
    give_relative_tables(core, architecture.position_table(core), tables)
    mark_healed(model.config)  # the weights were trained with the tables, so there is no stock model to restore
    return model


def _items(calibration: Any) -> list[Any]:
    """Return the given texts or batches as a list.

    Raises:
        CalibrationError: the value holds neither texts nor batches.
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
    """Return token ids of strings, each a separate document, of tensors, and of dictionaries with "input_ids"."""
    texts = [item for item in items if isinstance(item, str)]
    length = min(CALIBRATION_LENGTH, train_length(model))
    windows = document_windows(tokenizer, texts, length) if texts else []
    others = (item for item in items if not isinstance(item, str))
    return [*windows, *(item if isinstance(item, Tensor) else _without_padding(item) for item in others)]


def _without_padding(batch: Any) -> Tensor:
    """Return the token ids of a batch, (B, L).

    Raises:
        CalibrationError: the batch has padding, which calibration would treat as text.
    """
    mask = batch.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise CalibrationError(
            f"a batch to calibrate on has padding: {int((mask == 0).sum())} of its {mask.numel()} tokens. Give texts "
            "of one length, or strings, which are cut into windows."
        )
    return batch["input_ids"]


class PosSwapAuto:
    """Mixin that adds the argument `pos_scheme` to a transformers Auto class.

    Type errors are ignored because mypy does not know the stock class that the mixin is combined with.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, pos_scheme: Any = None, calibration: Any = None, **kwargs: Any) -> Any:
        """Load a pretrained model and swap its positional mechanism.

        Args:
            args: as in transformers.
            pos_scheme: a scheme's name ("alibi", "rope:yarn:factor=4"), a dict with "name" and options, or a config
                object such as `RopeConfig()`; or a list of those, for several schemes in different layers. "native":
                the checkpoint's own relative tables, which transformers no longer loads, as scheme `shaw`. None:
                exactly as in transformers, but a checkpoint with relative tables is refused.
            calibration: texts or batches of token ids to calibrate the scheme on, see `load_and_swap`.
            kwargs: as in transformers.
        """
        load = super().from_pretrained  # type: ignore[misc]
        return load_and_swap(load, *args, pos_scheme=pos_scheme, calibration=calibration, **kwargs)

    @classmethod
    def from_config(cls, *args: Any, pos_scheme: Any = None, **kwargs: Any) -> Any:
        """Make a model with new weights from a stock config and swap its positional mechanism.

        Args:
            args: as in transformers.
            pos_scheme: see `from_pretrained`.
            kwargs: as in transformers.
        """
        return load_and_swap(super().from_config, *args, pos_scheme=pos_scheme, **kwargs)  # type: ignore[misc]


@cache
def auto_class(name: str) -> type:
    """Return the drop-in class for transformers' Auto class with this name, such as "AutoModelForCausalLM".

    Raises:
        UnknownNameError: transformers has no such Auto model class.
    """
    stock = auto_model_classes().get(name)
    if stock is None:
        raise UnknownNameError(unknown_name_message("Auto class", name, auto_model_classes()))
    return type(name, (PosSwapAuto, stock), {"__module__": "hf_posswap", "__doc__": stock.__doc__})


class Installation:
    """The result of `install()`: a context manager that calls `uninstall()` at its end."""

    def __enter__(self) -> "Installation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        uninstall()


_PATCHED: tuple[type, ...] = (_BaseAutoModelClass, PreTrainedModel)
_stock: dict[type, Any] = {}


def install() -> Installation:
    """Make `from_pretrained` of transformers' own Auto classes and model classes accept `pos_scheme=`.

    Without `install()` these classes raise a TypeError about the unknown argument. A second call has no effect.
    `uninstall()` and the end of the returned context manager undo the installation.
    """
    for owner in _PATCHED:
        if owner not in _stock:
            _stock[owner] = vars(owner)["from_pretrained"]
            owner.from_pretrained = classmethod(_taking_scheme(_stock[owner].__func__))  # type: ignore[attr-defined]
    return Installation()


def uninstall() -> None:
    """Undo `install()`; do nothing if `install()` was not called."""
    for owner in list(_stock):
        owner.from_pretrained = _stock.pop(owner)  # type: ignore[attr-defined]


def _taking_scheme(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def from_pretrained(cls: type, *args: Any, pos_scheme: Any = None, calibration: Any = None, **kwargs: Any) -> Any:
        if pos_scheme is None and calibration is None:
            return function(cls, *args, **kwargs)
        return load_and_swap(function.__get__(cls), *args, pos_scheme=pos_scheme, calibration=calibration, **kwargs)

    return from_pretrained

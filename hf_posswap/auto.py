"""Drop-in Auto classes that take `pos_scheme=`, and `install()`, which teaches it to transformers' own."""

from collections.abc import Callable
from functools import cache, wraps
from types import TracebackType
from typing import Any

from transformers import PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from hf_posswap.auto_classes import auto_model_classes
from hf_posswap.errors import UnknownNameError
from hf_posswap.registry import unknown_name_message
from hf_posswap.schemes import as_config
from hf_posswap.swapping import swap


def load_and_swap(load: Callable[..., Any], *args: Any, pos_scheme: Any = None, **kwargs: Any) -> Any:
    """Load a model by `load` and swap its positional mechanism; without `pos_scheme` just load.

    Args:
        load: a `from_pretrained` or `from_config`; receives all other arguments, so that dtype, device_map,
            quantisation, gguf_file, revision and the rest work as ever.
        args: positional arguments for `load`.
        pos_scheme: see `hf_posswap.swap`; checked before anything is loaded.
        kwargs: keyword arguments for `load`.

    Returns:
        What `load` returns, its model swapped.
    """
    if pos_scheme is None:
        return load(*args, **kwargs)
    config = as_config(pos_scheme)
    loaded = load(*args, **kwargs)
    swap(loaded[0] if isinstance(loaded, tuple) else loaded, config)
    return loaded


class PosSwapAuto:
    """Mixin that gives a transformers Auto class the argument `pos_scheme`."""

    @classmethod
    def from_pretrained(cls, *args: Any, pos_scheme: Any = None, **kwargs: Any) -> Any:
        """Load a pretrained model and swap its positional mechanism.

        Args:
            args: as in transformers.
            pos_scheme: a scheme's name ("alibi", "rope:yarn:factor=4"), a dict with "name" and options, or a config
                object such as `RopeConfig()`. None: exactly as in transformers.
            kwargs: as in transformers.
        """
        return load_and_swap(super().from_pretrained, *args, pos_scheme=pos_scheme, **kwargs)  # type: ignore[misc]

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
    """Let transformers' own `from_pretrained`, of Auto and of concrete classes, take `pos_scheme=`.

    Without it they raise a TypeError about the unknown argument. May be called twice; `uninstall()` undoes it, and so
    does leaving the returned context manager.
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
    def from_pretrained(cls: type, *args: Any, pos_scheme: Any = None, **kwargs: Any) -> Any:
        return load_and_swap(function.__get__(cls), *args, pos_scheme=pos_scheme, **kwargs)

    return from_pretrained

"""Forwards that another tool replaced, on an instance or on a class, before or after a swap."""

from typing import Any

from torch import nn

from hf_posswap.errors import UnsupportedError


def is_replaced(module: nn.Module) -> bool:
    """Return whether a tool replaced a module's forward on the instance; hooks of accelerate do not count."""
    return "forward" in vars(module) and "_old_forward" not in vars(module)


def forward_name(owner: Any) -> str:
    """Return the qualified name of the forward of a module or class, with its Python module."""
    return _name(owner.forward)


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"


def check_entered(replaced: list[Any], entered: set[Any], scheme: str) -> None:
    """Refuse the outputs of a forward in which a module with a replaced forward did not run the scheme.

    Raises:
        UnsupportedError: a replaced forward did not call the forward of the swapped module.
    """
    for module in replaced:
        if module not in entered:
            raise UnsupportedError(
                f"the forward of {module.stock_class.__name__} was replaced on the instance after the swap, by "
                f"{forward_name(module)}, and no longer comes to scheme {scheme!r}. Let the tool call the "
                "forward that it replaces, or take it off the model."
            )


class ProvedForwards:
    """The forwards of a swapped core, its layers with a scheme and the modules between them, as they were at the swap.

    A copy of a model has the same forwards. An unpickled model has the current forwards of its process.

    Args:
        core: a core with a scheme.
    """

    def __init__(self, core: Any) -> None:
        paths = {name for name, module in core.named_modules() if any(module is layer for layer in core.pos_layers)}
        above = {name.rsplit(".", depth)[0] for name in paths for depth in range(1, name.count(".") + 1)}
        on_the_way = [core, *(core.get_submodule(name) for name in sorted(paths | above))]
        kinds = {type(module) for module in on_the_way}
        kinds |= {vars(kind)["stock_class"] for kind in kinds if "stock_class" in vars(kind)}
        self._of = {kind: kind.forward for kind in kinds}

    def __deepcopy__(self, memo: Any) -> "ProvedForwards":
        return self

    def __reduce__(self) -> Any:
        return _of_classes, (tuple(self._of),)

    def check(self, scheme: str) -> None:
        """Refuse to run if another tool has replaced one of the forwards on its class since the swap.

        Raises:
            UnsupportedError: a forward was replaced, so that the proof is no longer valid.
        """
        for kind, proved in self._of.items():
            if kind.forward is not proved:
                raise UnsupportedError(
                    f"the forward of {kind.__name__} was replaced on the class after the swap, by "
                    f"{forward_name(kind)}, and the swap proved that scheme {scheme!r} acts with {_name(proved)} only. "
                    "Take it off; or keep it, and save the model and load it anew, or swap(model, scheme, "
                    "replace=True): both prove the scheme again."
                )


def _of_classes(kinds: tuple[Any, ...]) -> ProvedForwards:
    made = ProvedForwards.__new__(ProvedForwards)
    made._of = {kind: kind.forward for kind in kinds}
    return made

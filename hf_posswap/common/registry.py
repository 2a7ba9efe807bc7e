"""A registry of named items that rejects duplicate names and suggests the nearest name for an unknown one."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from hf_posswap.errors import UnknownNameError

LONGEST_NAME = 100
"""Largest number of characters of an unknown name that are compared and shown; the name may come from a file."""


class Named(Protocol):
    """An object with a registered name."""

    @property
    def name(self) -> str:
        """The name."""


Item = TypeVar("Item", bound=Named)


def unknown_name_message(kind: str, value: object, allowed: Iterable[str]) -> str:
    """Return the message that `value` is not a known `kind`, with the nearest allowed name and all allowed names."""
    names = sorted(allowed)
    text = str(value)[:LONGEST_NAME]
    close = difflib.get_close_matches(text.lower(), names, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    shown = repr(value) if len(repr(value)) <= LONGEST_NAME else f"{text!r}…"
    return f"unknown {kind} {shown}.{suggestion} Allowed: {', '.join(names)}."


class Registry(Generic[Item]):
    """Named items of one kind, in the order of registration.

    Args:
        kind: name of the kind in error messages, such as "positional scheme".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Item] = {}

    def register(self, item: Item) -> Item:
        """Add `item` under its `name`; usable as a decorator.

        Raises:
            ValueError: another item has the same name.
        """
        if item.name in self._items and self._items[item.name] is not item:
            raise ValueError(f"{self.kind} {item.name!r} is registered twice: {self._items[item.name]!r} and {item!r}")
        self._items[item.name] = item
        return item

    def get(self, name: str) -> Item:
        """Return the item with a name.

        Raises:
            UnknownNameError: there is no such item; the message suggests the nearest name.
        """
        if name not in self._items:
            raise UnknownNameError(unknown_name_message(self.kind, name, self._items))
        return self._items[name]

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        return sorted(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

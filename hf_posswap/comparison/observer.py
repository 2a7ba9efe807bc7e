"""How a comparison tells what it is doing."""

from collections.abc import Sequence
from typing import Any


class Observer:
    """Told what `run` is doing; does nothing. Override what is of interest."""

    def stage(self, scheme: str, stage: str) -> None:
        """Called when `scheme` starts "loading", or measuring with a protocol."""

    def tokens(self, count: int) -> None:
        """Called when `count` more tokens have been read."""

    def scheme_done(self, scheme: str, rows: Sequence[dict[str, Any]]) -> None:
        """Called with all rows of a scheme."""

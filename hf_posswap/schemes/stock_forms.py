"""The positional mechanisms that a stock model's config and weights can express, as which a scheme can be exported.

A scheme returns one of these (`Scheme.as_stock`), and an architecture writes it into its stock model
(`Architecture.write_stock`). Neither depends on the other.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class StockForm:
    """A positional mechanism as stock models have it.

    Attributes:
        note: further information for users of the stock model, or None.
    """

    words: ClassVar[str]
    """Description of the mechanism, for messages."""

    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class AddedVectors(StockForm):
    """A vector for each position, added to the token embeddings: what `Scheme.embed` returns."""

    words: ClassVar[str] = "a vector per position at the embeddings"


@dataclass(frozen=True, kw_only=True)
class RotaryAngles(StockForm):
    """RoPE in every layer.

    Attributes:
        options: the fields of `RopeConfig` that its scaling reads, resolved.
        longest: length of the longest text that the scaling is designed for.
    """

    words: ClassVar[str] = "RoPE, the same in every layer"

    options: dict[str, Any] = field(default_factory=dict)
    longest: int


@dataclass(frozen=True, kw_only=True)
class NoMechanism(StockForm):
    """No positional mechanism.

    Attributes:
        layers: the layers without a mechanism; the others keep the native one. None: all layers.
    """

    words: ClassVar[str] = "layers without any positions"

    layers: tuple[int, ...] | None = None

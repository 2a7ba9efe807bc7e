"""What a scheme can be in a stock model: the positional mechanisms that stock configs and weights have words for.

A scheme says which of these it is (`Scheme.as_stock`), an architecture says how its stock models write it
(`Architecture.write_stock`). Neither knows of the other.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class StockForm:
    """A positional mechanism as stock models have it.

    Attributes:
        note: what else a user of the stock model should know, or None.
    """

    words: ClassVar[str]
    """What the mechanism is, for messages."""

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
        longest: the longest text that the scaling is made for.
    """

    words: ClassVar[str] = "RoPE, the same in every layer"

    options: dict[str, Any] = field(default_factory=dict)
    longest: int


@dataclass(frozen=True, kw_only=True)
class NoMechanism(StockForm):
    """Nothing that tells positions apart.

    Attributes:
        layers: the layers without it, the native mechanism acting in the others. None: all layers.
    """

    words: ClassVar[str] = "layers without any positions"

    layers: tuple[int, ...] | None = None

"""Families whose attention does not use transformers' attention interface; each has a file that describes its parts.

hf_posswap implements their attention itself: project, attend with the scheme, merge. A family that transformers moves
to the interface no longer needs its file.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from hf_posswap.architectures.base import Architecture


class WrittenArchitecture(Architecture, ABC):
    """A family whose attention hf_posswap implements, from data and three small functions."""

    attention_class: ClassVar[str]
    """Name of the class of its self-attention modules."""

    def is_attention(self, module_class: Any) -> bool:
        """See `Architecture.is_attention`."""
        return bool(module_class.__name__ == self.attention_class)

    @property
    def writes_attention(self) -> bool:
        """See `Architecture.writes_attention`."""
        return True

    @abstractmethod
    def project(self, module: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, H, L, d), k and v (B, Hkv, L, d) of hidden states (B, L, D)."""

    @abstractmethod
    def merge(self, module: Any, context: Tensor, weights: Tensor | None, arguments: dict[str, Any]) -> Any:
        """Return what the attention module returns for a context (B, L, H, d)."""

    @abstractmethod
    def dropout(self, module: Any) -> float:
        """Return the probability of dropping an attention weight in training."""

    def native_scores(self, module: Any, arguments: dict[str, Any]) -> Tensor | None:
        """Return the bias that the stock module adds to its scaled scores, broadcastable to (B, H, L, L), or None."""
        return None

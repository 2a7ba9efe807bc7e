"""BLOOM: ALiBi of its own, which its base model makes for all layers, in attention without transformers' interface."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from hf_posswap.architectures.base import register_architecture
from hf_posswap.architectures.written import WrittenArchitecture

TRAIN_LENGTH = 2048
"""Longest text of BLOOM's training (2211.05100, section 3.1.3); configs need not say it."""


@register_architecture
class Bloom(WrittenArchitecture):
    """BLOOM and its heads."""

    model_types = ("bloom",)
    attention_class = "BloomAttention"

    def native_bias(self, base: Any) -> str | None:
        """See `Architecture.native_bias`."""
        return "alibi"

    def train_length(self, base: Any) -> int:
        """See `Architecture.train_length`."""
        known = getattr(base.config, "seq_length", None)
        return known if isinstance(known, int) else TRAIN_LENGTH

    def project(self, module: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `WrittenArchitecture.project`: each head's q, k and v lie side by side."""
        fused = module.query_key_value(hidden).unflatten(-1, (module.num_heads, 3, module.head_dim))
        q, k, v = (part.transpose(1, 2) for part in fused.unbind(dim=3))
        return q, k, v

    def merge(self, module: Any, context: Tensor, weights: Tensor | None, arguments: dict[str, Any]) -> Any:
        """See `WrittenArchitecture.merge`; the residual is added here."""
        output = module.dense(context.flatten(-2))
        return arguments["residual"] + F.dropout(output, module.hidden_dropout, module.training), weights

    def dropout(self, module: Any) -> float:
        """See `WrittenArchitecture.dropout`."""
        return float(module.attention_dropout.p)

    def native_scores(self, module: Any, arguments: dict[str, Any]) -> Tensor | None:
        """See `WrittenArchitecture.native_scores`: ALiBi (B·H, 1, L)."""
        alibi: Tensor = arguments["alibi"]
        return alibi.unflatten(0, (-1, module.num_heads))

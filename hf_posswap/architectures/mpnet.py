"""MPNet: a position table and T5's bias in all layers, in attention without transformers' interface."""

from typing import Any

from torch import Tensor

from hf_posswap.architectures.base import register_architecture
from hf_posswap.architectures.written import WrittenArchitecture


@register_architecture
class MPNet(WrittenArchitecture):
    """MPNet and its heads, such as all-mpnet-base-v2."""

    model_types = ("mpnet",)
    attention_class = "MPNetSelfAttention"

    def native_bias(self, base: Any) -> str | None:
        """See `Architecture.native_bias`."""
        return "t5"

    def project(self, module: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `WrittenArchitecture.project`."""
        shape = (module.num_attention_heads, module.attention_head_size)
        q, k, v = (layer(hidden).unflatten(-1, shape).transpose(1, 2) for layer in (module.q, module.k, module.v))
        return q, k, v

    def merge(self, module: Any, context: Tensor, weights: Tensor | None, arguments: dict[str, Any]) -> Any:
        """See `WrittenArchitecture.merge`."""
        output = module.o(context.flatten(-2))
        return (output, weights) if arguments.get("output_attentions") else (output,)

    def dropout(self, module: Any) -> float:
        """See `WrittenArchitecture.dropout`."""
        return float(module.dropout.p)

    def native_scores(self, module: Any, arguments: dict[str, Any]) -> Tensor | None:
        """See `WrittenArchitecture.native_scores`."""
        bias: Tensor | None = arguments.get("position_bias")
        return bias

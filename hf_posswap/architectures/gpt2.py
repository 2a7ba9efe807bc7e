"""GPT-2: eager attention with scores in float32, which its config can ask for."""

from typing import Any

from torch import Tensor

from hf_posswap.architectures.base import Architecture, register_architecture


@register_architecture
class GPT2(Architecture):
    """GPT-2 and GPT-SW3, which share their classes."""

    model_types = ("gpt2", "gpt-sw3")

    def eager_function(self, module: Any) -> Any:
        """See `Architecture.eager_function`: with `reorder_and_upcast_attn` it is a method of the module."""
        return _upcast if module.reorder_and_upcast_attn else super().eager_function(module)


def _upcast(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Run the stock method, which takes scaling and dropout from its module."""
    context, weights = module._upcast_and_reordered_attn(query, key, value, attention_mask)
    return context, weights

"""The attention of families that do not use transformers' AttentionInterface, implemented in hf_posswap."""

import inspect
from contextlib import nullcontext
from typing import Any

import torch

from hf_posswap.attention.interface import handed_on
from hf_posswap.errors import UnsupportedError
from hf_posswap.swapped.cache_view import cache_among
from hf_posswap.swapped.context import ForwardContext
from hf_posswap.swapped.layer_call import LayerCall
from hf_posswap.swapped.modules import SwappedAttention, weights_in_memory


class WrittenAttention(SwappedAttention):
    """Mixin for a self-attention module with a new forward: project, update the cache, attend, merge."""

    def pos_backend(self, context: ForwardContext, arguments: dict[str, Any]) -> str:
        """Return the backend: sdpa, or eager if the attention weights are requested."""
        return "eager" if arguments.get("output_attentions") else "sdpa"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run attention; arguments and result are those of the stock module."""
        context = handed_on(kwargs)
        if not isinstance(context, ForwardContext):
            raise UnsupportedError(
                f"{type(self).__name__} was called outside of its model's forward, or in a graph that torch.compile "
                f"traces or gradient checkpointing runs again, where {self.pos_family.name!r} hands nothing on to its "
                "layers. Run the whole model without either."
            )
        if context.entered is not None:
            context.entered.add(self)
        family: Any = self.pos_family
        module: Any = self
        arguments = named(self.stock_class, args, kwargs)
        if context.idle:
            return super(SwappedAttention, self).forward(*args, **kwargs)
        call = LayerCall(self, self.pos_scheme, context.of_part(self.pos_part))
        call.hidden_states = arguments["hidden_states"]
        q, k, v = family.project(self, arguments["hidden_states"])
        cache = cache_among(arguments.values())
        if cache is not None:
            k, v = call.cache_for(cache).update(k, v, module.layer_idx)
        dropout = family.dropout(self) if self.training else 0.0
        keywords = {"dropout": dropout, "output_attentions": arguments.get("output_attentions")}
        with nullcontext() if torch.compiler.is_compiling() else weights_in_memory(self.pos_scheme):
            output, weights = call.attend(q, k, v, arguments.get("attention_mask"), (), keywords)
        return family.merge(self, output, weights, arguments)


def named(stock_class: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a stock module's forward by name."""
    # mypy does not know that a class of modules has a forward.
    names = list(inspect.signature(stock_class.forward).parameters)[1:]  # type: ignore[attr-defined]
    return dict(zip(names, args, strict=False)) | kwargs

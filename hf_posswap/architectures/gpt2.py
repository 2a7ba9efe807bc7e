"""GPT-2: a learned position table at the embeddings, causal attention with a fused projection."""

import re
from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from hf_posswap.architectures.base import Architecture, Projection, register_architecture
from hf_posswap.attention.inputs import AttentionInputs


@register_architecture
class GPT2(Architecture):
    """GPT-2 and its heads."""

    name = "gpt2"
    native = "learned"
    modeling_module = "transformers.models.gpt2.modeling_gpt2"
    configuration_class = "transformers.models.gpt2.configuration_gpt2.GPT2Config"
    attention_path = re.compile(r"h\.(\d+)\.attn")
    table_path = "wpe"

    def project(self, module: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Architecture.project`."""
        shape = (*hidden_states.shape[:-1], -1, module.head_dim)
        q, k, v = module.c_attn(hidden_states).split(module.split_size, dim=2)
        return tuple(x.view(shape).transpose(1, 2) for x in (q, k, v))

    def query_and_key(self, module: Any) -> tuple[Projection, Projection] | None:
        """See `Architecture.query_and_key`: two thirds of the fused projection, if no adapter wraps it."""
        if type(module.c_attn) is not Conv1D:
            return None
        weights, biases = (x.split(module.split_size) for x in (module.c_attn.weight.t(), module.c_attn.bias))
        return Projection(weights[0], biases[0]), Projection(weights[1], biases[1])

    def merge(self, module: Any, context: Tensor) -> Tensor:
        """See `Architecture.merge`."""
        return module.resid_dropout(module.c_proj(context.flatten(-2).contiguous()))

    def attention_dropout(self, module: Any) -> float:
        """See `Architecture.attention_dropout`."""
        return module.attn_dropout.p

    def attend_natively(
        self, module: Any, inputs: AttentionInputs, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Honour `reorder_and_upcast_attn`, which stock GPT-2 does in eager attention."""
        if module.reorder_and_upcast_attn and module.config._attn_implementation == "eager":
            return module._upcast_and_reordered_attn(inputs.q, inputs.k, inputs.v, inputs.mask)
        return super().attend_natively(module, inputs, arguments)

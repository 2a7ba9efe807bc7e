"""GPT-2: a learned position table at the embeddings, causal attention with a fused projection."""

import re
from typing import Any

from torch import Tensor

from hf_posswap.architectures.base import Architecture, register_architecture
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

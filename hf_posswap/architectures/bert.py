"""BERT: a learned position table at the embeddings; an encoder, or causal with `is_decoder`."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from hf_posswap.architectures.base import Architecture, Projection, register_architecture


@register_architecture
class Bert(Architecture):
    """BERT and its heads."""

    name = "bert"
    native = "learned"
    modeling_module = "transformers.models.bert.modeling_bert"
    configuration_class = "transformers.models.bert.configuration_bert.BertConfig"
    attention_path = re.compile(r"encoder\.layer\.(\d+)\.attention\.self")
    table_path = "embeddings.position_embeddings"
    modes = (False, True)

    def project(self, module: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Architecture.project`."""
        shape = (*hidden_states.shape[:-1], -1, module.attention_head_size)
        layers = (module.query, module.key, module.value)
        return tuple(layer(hidden_states).view(shape).transpose(1, 2) for layer in layers)

    def query_and_key(self, module: Any) -> tuple[Projection, Projection] | None:
        """See `Architecture.query_and_key`; adapters and quantised layers are none of it."""
        if type(module.query) is not nn.Linear or type(module.key) is not nn.Linear:
            return None
        query, key = (Projection(layer.weight, layer.bias) for layer in (module.query, module.key))
        return query, key

    def merge(self, module: Any, context: Tensor) -> Tensor:
        """The output projection is in another module, BertSelfOutput."""
        return context.flatten(-2).contiguous()

    def attention_dropout(self, module: Any) -> float:
        """See `Architecture.attention_dropout`."""
        return module.dropout.p

    def complete_inputs(self, arguments: dict[str, Any], batch: int, length: int, device: torch.device) -> None:
        """Without token types BERT gathers them from a buffer that ends at the old limit: give it zeros."""
        if arguments.get("token_type_ids") is None:
            arguments["token_type_ids"] = torch.zeros(batch, length, dtype=torch.long, device=device)

    def is_causal(self, config: Any) -> bool:
        """See `Architecture.is_causal`."""
        return bool(config.is_decoder)

"""Llama: RoPE on queries and keys in every layer, causal attention with grouped queries."""

import re
from typing import Any

from torch import Tensor

from hf_posswap.architectures.base import Architecture, register_architecture
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes.rope import OPTIONS_OF_SCALING

OPTION_OF_KEY = {
    "rope_theta": "base",
    "factor": "factor",
    "original_max_position_embeddings": "original_length",
    "partial_rotary_factor": "partial_rotary_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
}
"""transformers' names of RoPE parameters, and ours."""


@register_architecture
class Llama(Architecture):
    """Llama and the many models that share its classes (SmolLM, TinyLlama, …)."""

    name = "llama"
    native = "rope"
    modeling_module = "transformers.models.llama.modeling_llama"
    configuration_class = "transformers.models.llama.configuration_llama.LlamaConfig"
    attention_path = re.compile(r"layers\.(\d+)\.self_attn")

    def project(self, module: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Architecture.project`."""
        shape = (*hidden_states.shape[:-1], -1, module.head_dim)
        layers = (module.q_proj, module.k_proj, module.v_proj)
        return tuple(layer(hidden_states).view(shape).transpose(1, 2) for layer in layers)

    def merge(self, module: Any, context: Tensor) -> Tensor:
        """See `Architecture.merge`."""
        return module.o_proj(context.flatten(-2).contiguous())

    def attention_dropout(self, module: Any) -> float:
        """See `Architecture.attention_dropout`."""
        return module.attention_dropout

    def rotate_natively(self, module: Any, q: Tensor, k: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The model's own RoPE, whose angles arrive as `position_embeddings`."""
        cos, sin = arguments["position_embeddings"]
        return module.stock_module.apply_rotary_pos_emb(q, k, cos, sin)

    def native_rope(self, config: Any) -> dict[str, Any]:
        """See `Architecture.native_rope`.

        Raises:
            UnsupportedError: a RoPE type or parameter that `rope` does not have.
        """
        parameters = {key: value for key, value in config.rope_parameters.items() if value is not None}
        scaling = parameters.pop("rope_type", "default").replace("default", "none")
        unknown = sorted(set(parameters) - set(OPTION_OF_KEY))
        if scaling not in OPTIONS_OF_SCALING or unknown:
            what = f"parameters {unknown}" if unknown else f"rope_type {scaling!r}"
            raise UnsupportedError(
                f"the model's rope_parameters {config.rope_parameters} have {what} that scheme 'rope' does not know. "
                f"Known rope_type: default, {', '.join(OPTIONS_OF_SCALING)}; parameters: {', '.join(OPTION_OF_KEY)}."
            )
        if scaling == "dynamic":
            # transformers reads the train length of this scaling from the config, not from rope_parameters.
            parameters["original_max_position_embeddings"] = config.max_position_embeddings
        read = (
            *OPTIONS_OF_SCALING[scaling],
            "base",
            *(("partial_rotary_factor",) if scaling == "proportional" else ()),
        )
        options = {OPTION_OF_KEY[key]: value for key, value in parameters.items() if OPTION_OF_KEY[key] in read}
        return {"scaling": scaling} | options

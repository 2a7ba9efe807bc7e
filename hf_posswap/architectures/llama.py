"""Llama: RoPE on queries and keys in every layer, causal attention with grouped queries."""

import re
from typing import Any

from torch import Tensor

from hf_posswap.architectures.base import Architecture, register_architecture
from hf_posswap.architectures.stock import StockModel
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes.rope import OPTIONS_OF_SCALING
from hf_posswap.schemes.stock_forms import NoMechanism, RotaryAngles, StockForm

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

    def stock_forms(self) -> tuple[type[StockForm], ...]:
        """See `Architecture.stock_forms`."""
        return (RotaryAngles, NoMechanism)

    def write_stock(self, base: Any, form: StockForm, limit: int | None, max_length: int | None) -> StockModel:
        """See `Architecture.write_stock`: other `rope_parameters`, or a SmolLM3 for layers without RoPE."""
        known = base.config.max_position_embeddings
        if isinstance(form, RotaryAngles):
            return _with_angles(form, known, max_length)
        assert isinstance(form, NoMechanism)
        layers = range(base.config.num_hidden_layers)
        without = layers if form.layers is None else form.layers
        return StockModel(
            words=f"a SmolLM3 without RoPE in {len(without)} of {len(layers)} layers",
            max_length=max_length or known,
            values={
                "no_rope_layers": [int(layer not in without) for layer in layers],
                "max_position_embeddings": max_length or known,
            },
            configuration_class="transformers.models.smollm3.configuration_smollm3.SmolLM3Config",
            modeling_module="transformers.models.smollm3.modeling_smollm3",
        )


def _with_angles(form: RotaryAngles, known: int, max_length: int | None) -> StockModel:
    """Write RoPE as `rope_parameters`; `known` is the limit that the config states now.

    Raises:
        UnsupportedError: dynamic scaling, which takes its train length from the stated limit, with another limit.
    """
    options = dict(form.options)
    scaling = options.pop("scaling")
    longest = max_length or max(known, form.longest)
    if scaling == "dynamic":
        train_length = options.pop("original_length")
        if max_length not in (None, train_length):
            raise UnsupportedError(
                f"dynamic scaling takes its train length from the stated limit, which so has to be {train_length}, not "
                f"{max_length}. Leave out max_length: longer texts are read all the same."
            )
        longest = train_length
    key_of_option = {option: key for key, option in OPTION_OF_KEY.items()}
    parameters = {"rope_type": "default" if scaling == "none" else scaling}
    parameters |= {
        key_of_option[name]: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None
    }
    return StockModel(
        words=f"rope_parameters {parameters}",
        max_length=longest,
        values={"rope_parameters": parameters, "max_position_embeddings": longest},
    )

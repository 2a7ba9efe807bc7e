"""Llama: RoPE in every layer, and an export for layers without it."""

from typing import Any

from hf_posswap.architectures.base import Architecture, register_architecture
from hf_posswap.architectures.stock import StockModel
from hf_posswap.schemes.stock_forms import NoMechanism, RotaryAngles, StockForm


@register_architecture
class Llama(Architecture):
    """Llama and the many models that share its classes (SmolLM, TinyLlama, …), and Qwen2."""

    model_types = ("llama", "qwen2")
    plain_rotary = True

    def stock_forms(self, base: Any) -> tuple[type[StockForm], ...]:
        """See `Architecture.stock_forms`."""
        return (RotaryAngles, NoMechanism)

    def write_stock(self, base: Any, form: StockForm, limit: int | None, max_length: int | None) -> StockModel:
        """See `Architecture.write_stock`: other `rope_parameters`, or a SmolLM3 for layers without RoPE."""
        if not isinstance(form, NoMechanism):
            return super().write_stock(base, form, limit, max_length)
        longest = max_length or self.train_length(base)
        layers = range(base.config.num_hidden_layers)
        without = layers if form.layers is None else form.layers
        return StockModel(
            words=f"a SmolLM3 without RoPE in {len(without)} of {len(layers)} layers",
            max_length=longest,
            values={
                "no_rope_layers": [int(layer not in without) for layer in layers],
                "max_position_embeddings": longest,
            },
            model_type="smollm3",
        )

"""Qwen2: Llama's attention, with biases at the projections of q, k and v."""

from typing import Any

from hf_posswap.architectures.base import register_architecture
from hf_posswap.architectures.llama import Llama
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes.base import ModelFacts


@register_architecture
class Qwen2(Llama):
    """Qwen2 and Qwen2.5, without sliding windows, which the released models have switched off."""

    name = "qwen2"
    modeling_module = "transformers.models.qwen2.modeling_qwen2"
    configuration_class = "transformers.models.qwen2.configuration_qwen2.Qwen2Config"

    def facts(self, base: Any) -> ModelFacts:
        """See `Architecture.facts`.

        Raises:
            UnsupportedError: some layers have a sliding window.
        """
        windowed = [index for index, kind in enumerate(base.config.layer_types) if kind == "sliding_attention"]
        if windowed:
            raise UnsupportedError(
                f"layers {windowed} of this qwen2 model have a sliding window (use_sliding_window=True): with a cache "
                "they hold other keys than the other layers. Load the model with use_sliding_window=False to swap it."
            )
        return super().facts(base)

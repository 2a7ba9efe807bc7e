"""Which models the tests run on: small ones with fresh weights, in the sizes that transformers uses itself."""

from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import transformers
from transformers import PreTrainedModel

TOKEN_TYPES = 8
SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37,
    "hidden_act": "gelu", "max_position_embeddings": 512, "initializer_range": 0.02, "pad_token_id": 0,
}  # fmt: skip
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "type_vocab_size": TOKEN_TYPES}
LLAMA = {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"}
GPT2 = {"bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Family:
    """A model type of transformers in one mode.

    Attributes:
        model_type: as transformers writes it.
        options: of its config, beside `SIZES`.
        token_types: whether its inputs have token types.
    """

    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    token_types: bool = False

    @cached_property
    def stock_classes(self) -> tuple[type[PreTrainedModel], ...]:
        """Return all classes that transformers exports for the model type, the base model first."""
        config = transformers.CONFIG_MAPPING[self.model_type]
        base = transformers.MODEL_MAPPING[config]
        module = import_module(base.__module__)
        named = [getattr(module, name) for name in module.__all__ if not name.endswith("PreTrainedModel")]
        return (base, *(kind for kind in named if issubclass(kind, PreTrainedModel) and kind is not base))

    def stock_config(self) -> Any:
        """Return a small config."""
        return transformers.CONFIG_MAPPING[self.model_type](**self.stock_options())

    def stock_options(self) -> dict[str, Any]:
        """Return the options of the small config."""
        return SIZES | self.options

    @property
    def writes(self) -> bool:
        """Return whether attention is causal, so that the model can generate."""
        return bool(getattr(self.stock_config(), "is_decoder", True))


FAMILIES = {
    "gpt2": Family("gpt2", GPT2, token_types=True),
    "bert": Family("bert", DROPOUT, token_types=True),
    "bert-decoder": Family("bert", DROPOUT | {"is_decoder": True}, token_types=True),
    "llama": Family("llama", LLAMA),
    "roberta": Family("roberta", DROPOUT | {"pad_token_id": 1}, token_types=True),
    "roberta-decoder": Family("roberta", DROPOUT | {"pad_token_id": 1, "is_decoder": True}, token_types=True),
}

"""Which of transformers' Auto classes know a model family, and by which class."""

import importlib
from functools import cache
from typing import Any

from hf_posswap.architectures import Architecture

AUTO_CLASS_OF_TASK = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""peft's names of tasks; masked language modelling has none."""


def auto_model_classes() -> dict[str, Any]:
    """Return transformers' Auto model classes by name."""
    module = importlib.import_module("transformers.models.auto.modeling_auto")
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith("AutoModel") and isinstance(value, type) and hasattr(value, "_model_mapping")
    }


@cache
def auto_classes(architecture: Architecture) -> dict[str, str]:
    """Return the Auto classes that know an architecture: {"AutoModelForCausalLM": "GPT2LMHeadModel", …}.

    An Auto class may also know a family by a class of another one, which is none of ours.
    """
    result: dict[str, str] = {}
    # The family's package lists its classes before it imports any of them.
    family = set(dir(importlib.import_module(architecture.modeling_module.rpartition(".")[0])))
    for name, auto in auto_model_classes().items():
        stock = auto._model_mapping._model_mapping.get(architecture.name)
        if stock in family:
            result[name] = stock
    return result


def base_class_name(architecture: Architecture) -> str:
    """Return the name of an architecture's headless base model class."""
    return auto_classes(architecture)["AutoModel"]

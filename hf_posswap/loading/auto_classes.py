"""Which of transformers' Auto classes know a model family, and by which class."""

from functools import cache
from importlib import import_module

from hf_posswap.architectures import Architecture
from hf_posswap.architectures.model_types import auto_model_classes, class_name_of, package_of

AUTO_CLASS_OF_TASK = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""peft's names of tasks; masked language modelling has none."""


@cache
def auto_classes(architecture: Architecture) -> dict[str, str]:
    """Return the Auto classes that know an architecture: {"AutoModelForCausalLM": "GPT2LMHeadModel", …}.

    An Auto class may also know a family by a class of another one, which is none of ours.
    """
    # The family's package lists its classes before it imports any of them.
    family = set(dir(import_module(package_of(architecture.name))))
    known = {
        name: class_name_of(architecture.name, name)
        for name, auto in auto_model_classes().items()
        if architecture.name in auto._model_mapping._model_mapping
    }
    return {auto: stock for auto, stock in known.items() if stock in family}

"""The transformers Auto classes of a model family, and the class that each of them loads."""

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
"""Auto classes by peft's task names; peft has no name for masked language modelling."""


@cache
def auto_classes(architecture: Architecture) -> dict[str, str]:
    """Return the Auto classes of an architecture and their classes: {"AutoModelForCausalLM": "GPT2LMHeadModel", …}.

    An Auto class that maps the family to a class of another family is left out: hf_posswap has no swapped class for it.
    """
    # `dir` of the family's package lists its classes without importing their modules.
    family = set(dir(import_module(package_of(architecture.name))))
    known = {
        name: class_name_of(architecture.name, name)
        for name, auto in auto_model_classes().items()
        if architecture.name in auto._model_mapping._model_mapping
    }
    return {auto: stock for auto, stock in known.items() if stock in family}

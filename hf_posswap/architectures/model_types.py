"""transformers' model types that are language models, and the names of their classes; imports no model class."""

import importlib
from functools import cache
from typing import Any

from hf_posswap.common.names import MODEL_TYPE_PREFIX


def stock_type(model_type: str) -> str:
    """Return the stock model type of a model type, swapped or not."""
    return model_type.removeprefix(MODEL_TYPE_PREFIX)


def auto_model_classes() -> dict[str, Any]:
    """Return transformers' Auto model classes by name."""
    module = importlib.import_module("transformers.models.auto.modeling_auto")
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith("AutoModel") and isinstance(value, type) and hasattr(value, "_model_mapping")
    }


def _mapping(auto_name: str) -> dict[str, Any]:
    mapping: dict[str, Any] = auto_model_classes()[auto_name]._model_mapping._model_mapping
    return mapping


@cache
def classes_of(auto_name: str) -> frozenset[str]:
    """Return the names of the stock classes that an Auto class loads."""
    named = _mapping(auto_name).values()
    return frozenset(name for names in named for name in ([names] if isinstance(names, str) else names))


@cache
def language_model_types() -> tuple[str, ...]:
    """Return the model types that transformers maps to a causal or a masked language model, sorted."""
    known = _mapping("AutoModel")
    found = {*_mapping("AutoModelForCausalLM"), *_mapping("AutoModelForMaskedLM")}
    return tuple(sorted(name for name in found if name in known))


@cache
def modes_of(model_type: str) -> tuple[bool, ...]:
    """Return the directions that self-attention of a model type can have: causal (True), bidirectional (False)."""
    masked = model_type in _mapping("AutoModelForMaskedLM")
    causal = model_type in _mapping("AutoModelForCausalLM")
    return (*((False,) if masked else ()), *((True,) if causal else ()))


def package_of(model_type: str) -> str:
    """Return the package with the classes of a model type."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    return f"transformers.models.{model_type_to_module_name(model_type)}"


def class_name_of(model_type: str, auto_name: str) -> str:
    """Return the name of the class that an Auto class takes for a model type; the first, if there are several."""
    name = _mapping(auto_name)[model_type]
    return name[0] if isinstance(name, tuple | list) else name

"""Models and tokenizers by name: a `demo:` name, a folder, a name on the Hub, a GGUF file, or an adapter."""

from hf_posswap.sources.loading import class_for, is_adapter, load_config, load_model, load_tokenizer, sources_of
from hf_posswap.sources.models import ModelSource, resolve_model

__all__ = [
    "ModelSource",
    "class_for",
    "is_adapter",
    "load_config",
    "load_model",
    "load_tokenizer",
    "resolve_model",
    "sources_of",
]

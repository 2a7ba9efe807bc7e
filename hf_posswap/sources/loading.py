"""Loading models and tokenizers by name: a `demo:` name, a folder, a name on the Hub, a GGUF file, or an adapter."""

import pickle
import re
import struct
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_posswap.architectures import architecture_of
from hf_posswap.auto import auto_class as drop_in
from hf_posswap.errors import PosSwapError, SourceError
from hf_posswap.loading.origin import is_repo_id, remember_name, remember_source
from hf_posswap.sources.models import DEMO_MODELS, ModelSource, resolve_model
from hf_posswap.texts.sources import PREFIX

TOKENIZER = "tokenizer_config.json"

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,  # weights of other shapes, a zip file of torch's that is cut
    EOFError,
    StrictDataclassError,  # a field of a config that is of another type
    SafetensorError,
    struct.error,  # a cut GGUF file
    pickle.UnpicklingError,
)
"""What transformers and the readers below it raise of files that are missing, cut short or of another kind."""


def is_adapter(name: str) -> bool:
    """Return whether a name means an adapter, in a folder or on the Hub, and no whole model."""
    if name.startswith(PREFIX):
        return False
    if Path(name).exists():
        return (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file()
    return is_repo_id(name) and not _on_hub(name, "config.json") and _on_hub(name, "adapter_config.json")


def sources_of(name: str) -> list[ModelSource]:
    """Return where a model is loaded from: one place, and for an adapter those of its base too.

    Raises:
        SourceError, AdapterError: see `load_config`.
    """
    if not is_adapter(name):
        return [resolve_model(name)]
    from hf_posswap.training.adapters import adapter_base  # it imports this module

    return [resolve_model(name), *sources_of(adapter_base(name))]


def _on_hub(name: str, file: str) -> bool:
    try:
        return bool(hf_hub_download(name, file))
    except (OSError, ValueError, HfHubHTTPError):  # no such file or repository, or no way to it
        return False


def load_config(name: str) -> PretrainedConfig:
    """Load the configuration of the model called `name`; of an adapter, that of the model with the adapter in it.

    Raises:
        SourceError: there is no such model, or transformers does not know its kind.
        AdapterError: an adapter that is broken, or whose base cannot be found.
    """
    if is_adapter(name):
        from hf_posswap.training.adapters import adapted_config  # it imports this module

        return adapted_config(name)
    source = resolve_model(name)
    try:
        return AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs)
    except PosSwapError:
        raise
    except UNREADABLE as error:
        raise SourceError(
            f"cannot load model {name!r}: {error}\nGive a folder with a config.json and weights, a GGUF file, a Hub "
            f"name, or one of {', '.join(DEMO_MODELS)}."
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model called `name`; an adapter without one has its base's.

    Raises:
        SourceError: there is none.
    """
    if is_adapter(name) and not ((Path(name) / TOKENIZER).is_file() or _on_hub(name, TOKENIZER)):
        from hf_posswap.training.adapters import adapter_base  # it imports this module

        return load_tokenizer(adapter_base(name))
    source = resolve_model(name)
    try:
        return AutoTokenizer.from_pretrained(source.path, **source.from_pretrained_kwargs)
    except UNREADABLE as error:
        raise SourceError(f"cannot load the tokenizer of {name!r}: {error}") from error


def load_model(name: str, auto_class: Any = None, *, supported_only: bool = True, **kwargs: Any) -> PreTrainedModel:
    """Load the model called `name`, as it is, in float32 unless `dtype` says otherwise, in evaluation mode.

    An adapter is loaded with the model under it and merged into it.

    Args:
        name: see `resolve_model`.
        auto_class: the class whose `from_pretrained` loads it; by default the one its configuration names.
        supported_only: refuse a model that no scheme can enter.
        kwargs: further arguments of `from_pretrained`, such as `config`, which spares reading a GGUF file twice.

    Raises:
        SourceError: there is no such model.
        UnsupportedError: its architecture is not supported.
        AdapterError: an adapter that is broken, does not fit its base, or whose base cannot be found.
    """
    if is_adapter(name):
        from hf_posswap.training.adapters import adapted_model  # it imports this module

        kwargs.pop("config", None)  # that of the adapted model, not of the one under it
        return adapted_model(name, auto_class, supported_only=supported_only, **kwargs)

    source = resolve_model(name)
    config = kwargs.pop("config", None)
    if config is None:
        config = load_config(name)
    if supported_only:
        architecture_of(config)
    if auto_class is None:
        auto_class = class_for(config)
    kwargs.setdefault("dtype", "float32")
    try:
        model = auto_class.from_pretrained(source.path, config=config, **source.from_pretrained_kwargs, **kwargs)
    except PosSwapError:
        raise
    except UNREADABLE as error:
        raise SourceError(
            f"cannot load the weights of {name!r}: {type(error).__name__}: {error}\nIf a file is cut short or does not "
            "belong to the others, get the model again, or save it again."
        ) from error
    remember_source(model, source.path, source.from_pretrained_kwargs | kwargs)
    if name.startswith(PREFIX):
        remember_name(model, name, source.path)
    return model.eval()


def class_for(config: PretrainedConfig) -> Any:
    """Return the class that loads a model with the head its configuration names.

    A GGUF file names none; it holds a causal language model.

    Raises:
        SourceError: no class loads this head.
    """
    name = (getattr(config, "architectures", None) or ["ForCausalLM"])[0]
    head = re.search(r"For([A-Z]\w*)$", name)
    if head is not None:
        auto_name = f"AutoModelFor{head.group(1)}"
    elif name.endswith("LMHeadModel"):
        auto_name = "AutoModelForCausalLM"
    elif name.endswith("HeadsModel"):
        if not hasattr(transformers, name):
            raise SourceError(
                f"no Auto class loads {name!r}. Load it with its own class and give it to hf_posswap.swap."
            )
        return getattr(transformers, name)  # no Auto class has this head, and AutoModel would drop it
    else:
        auto_name = "AutoModel"
    return drop_in(auto_name)

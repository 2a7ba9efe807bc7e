"""Loading models and tokenizers by name: a `demo:` name, a folder, a name on the Hub, a GGUF file, or an adapter."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_posswap.architectures import architecture_of
from hf_posswap.architectures.model_types import classes_of
from hf_posswap.auto import auto_class as drop_in
from hf_posswap.common.names import CLASS_PREFIX
from hf_posswap.errors import AdapterError, PosSwapError, SourceError
from hf_posswap.loading.origin import is_repo_id, remember_name, remember_source
from hf_posswap.sources.models import DEMO_MODELS, UNREADABLE, ModelSource, resolve_model
from hf_posswap.texts.sources import DEMO_PREFIX

TOKENIZER = "tokenizer_config.json"
FOR_CONFIG = ("revision", "subfolder", "cache_dir", "token", "gguf_file")
"""Arguments of `from_pretrained` that locate a config."""


def is_adapter(name: str) -> bool:
    """Return whether a name is that of an adapter, in a folder or on the Hub, and not of a whole model."""
    if name.startswith(DEMO_PREFIX):
        return False
    if Path(name).exists():
        return (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file()
    return is_repo_id(name) and not _on_hub(name, "config.json") and _on_hub(name, "adapter_config.json")


def sources_of(name: str) -> list[ModelSource]:
    """Return the sources that a model is loaded from: its own, and for an adapter also those of its base.

    Raises:
        SourceError, AdapterError: see `load_config`.
    """
    if not is_adapter(name):
        return [resolve_model(name)]
    from hf_posswap.sources.adapters import adapter_base  # peft is slow to import

    return [resolve_model(name), *sources_of(adapter_base(name))]


def _on_hub(name: str, file: str) -> bool:
    try:
        return bool(hf_hub_download(name, file))
    except (OSError, ValueError, HfHubHTTPError):  # no such file or repository, or no connection
        return False


def load_config(name: str) -> PretrainedConfig:
    """Load the config of the model called `name`; for an adapter, the config of the model with the merged adapter.

    An encoder's config may name a head that its checkpoint has no weights for, as in many checkpoints of
    sentence-transformers: they are saved without the head under the config of the model that they were made from. The
    config returned then names the model without a head. To find out, the weights are fetched if the model is on the
    Hub, but not read.

    Raises:
        SourceError: there is no such model, or transformers does not support its model type.
        AdapterError: the adapter's files are damaged, or its base cannot be found.
    """
    if is_adapter(name):
        from hf_posswap.sources.adapters import adapted, adapter_base, adapter_config  # peft is slow to import

        return adapted(base_config(name, adapter_base(name)), adapter_config(name))
    source = resolve_model(name)
    try:
        config = AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs)
        return _without_lost_head(config, source)
    except PosSwapError:
        raise
    except UNREADABLE as error:
        raise SourceError(
            f"cannot load model {name!r}: {error}\nGive a folder with a config.json and weights, a GGUF file, a Hub "
            f"name, or one of {', '.join(DEMO_MODELS)}."
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model called `name`; for an adapter without a tokenizer, that of its base.

    Raises:
        SourceError: there is none.
    """
    if is_adapter(name) and not ((Path(name) / TOKENIZER).is_file() or _on_hub(name, TOKENIZER)):
        from hf_posswap.sources.adapters import adapter_base  # peft is slow to import

        return load_tokenizer(adapter_base(name))
    source = resolve_model(name)
    try:
        return AutoTokenizer.from_pretrained(source.path, **source.from_pretrained_kwargs)
    except UNREADABLE as error:
        raise SourceError(f"cannot load the tokenizer of {name!r}: {error}") from error


def load_model(name: str, auto_class: Any = None, *, supported_only: bool = True, **kwargs: Any) -> PreTrainedModel:
    """Load the model called `name` in evaluation mode, unchanged, in float32 unless `dtype` is given.

    An adapter is loaded with its base model and merged into it.

    Args:
        name: see `resolve_model`.
        auto_class: the class whose `from_pretrained` loads the model; default: the class in its config.
        supported_only: refuse a model that supports no scheme.
        kwargs: further arguments of `from_pretrained`, such as `config`; with it, a GGUF file is not read twice.

    Raises:
        SourceError: there is no such model.
        UnsupportedError: its architecture is not supported.
        AdapterError: the adapter's files are damaged, it does not fit its base, or its base cannot be found.
    """
    if is_adapter(name):
        kwargs.pop("config", None)  # it is the config of the adapted model, not of the base
        return _load_adapted(name, auto_class, supported_only=supported_only, **kwargs)
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
    if name.startswith(DEMO_PREFIX):
        remember_name(model, name, source.path)
    return model.eval()


def _without_lost_head(config: PretrainedConfig, source: ModelSource) -> PretrainedConfig:
    """Return the config of a stock encoder without the head that its checkpoint has no weights for."""
    if "gguf_file" in source.from_pretrained_kwargs or hasattr(config, "pos_scheme"):
        return config
    try:
        head = class_for(config).__name__
        if head == "AutoModel" or architecture_of(config).is_causal(config):
            return config
        with _unreported():  # on the meta device only the names of the weights are read
            model, report = getattr(transformers, head).from_pretrained(
                source.path,
                config=copy.deepcopy(config),  # `from_pretrained` changes the config
                device_map="meta",
                output_loading_info=True,
                **source.from_pretrained_kwargs,
            )
    # Damaged files and missing packages for quantised weights raise errors of many types. Loading the weights raises
    # them again, with the model's name; callers that need the config only must not fail here.
    except Exception:
        return config
    if _lost_head(model, set(report["missing_keys"])):
        config.architectures = [type(model.base_model).__name__]
    return config


def _lost_head(model: PreTrainedModel, missing: set[str]) -> bool:
    """Return whether a checkpoint has weights of the base model, tied ones too, and none of the head."""
    base = {id(weight) for weight in model.base_model.parameters()}
    names = {name: id(weight) in base for name, weight in model.named_parameters()}
    head = {name for name, of_base in names.items() if not of_base}
    return bool(head) and head <= missing and not names.keys() <= missing


@contextmanager
def _unreported() -> Iterator[None]:
    """Keep transformers from reporting what it loads."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_adapted(name: str, auto_class: Any = None, *, supported_only: bool = True, **kwargs: Any) -> Any:
    """Load an adapter with its base model and merge it; return a plain model without peft, marked as healed.

    Args:
        name: the adapter's folder, or its name on the Hub.
        auto_class: the Auto class of the result; None: the class that the adapter was trained on. AutoModel returns
            the base model without a head.
        supported_only: refuse a base whose architecture is not supported.
        kwargs: arguments of the base model's `from_pretrained` (dtype, …).

    Raises:
        AdapterError: the adapter's files are damaged, it does not fit its base, cannot be merged, or was trained with
            another head than that of `auto_class`.
        CheckpointError: the adapter's `pos_scheme` entry is malformed, or has a newer format.
    """
    from hf_posswap.sources.adapters import adapter_base, adapter_config, put_on  # peft is slow to import

    adapter = adapter_config(name)
    if adapter.is_prompt_learning:
        raise AdapterError(
            f"adapter {name!r} is of type {adapter.peft_type}, which cannot be merged into a model. In Python, "
            "load_adapter(folder) puts it on its base."
        )
    own = class_for(load_config(name))
    wanted = own.__name__ if auto_class is None else auto_class.__name__
    if wanted not in (own.__name__, "AutoModel"):
        raise AdapterError(f"adapter {name!r} was trained on an {own.__name__}, and an {wanted} is asked for.")
    base = load_model(adapter_base(name), own, supported_only=supported_only, **kwargs)
    model: Any = put_on(base, name, adapter).merge_and_unload().requires_grad_(True)  # peft freezes the base
    remember_name(model, name, name)
    return (model if wanted == own.__name__ else model.base_model).eval()


def base_config(folder: str | Path, name: str, **kwargs: Any) -> Any:
    """Load the config of an adapter's base model.

    Args:
        folder: the adapter's folder, or its name on the Hub.
        name: the base model's name, see `load_model`.
        kwargs: arguments of the base model's `from_pretrained`.

    Raises:
        AdapterError: the config cannot be loaded.
    """
    known = {key: kwargs[key] for key in FOR_CONFIG if key in kwargs}
    try:
        return transformers.AutoConfig.from_pretrained(name, **known) if known else load_config(name)
    except (SourceError, OSError) as error:
        raise AdapterError(
            f"the model under adapter {str(folder)!r} is {name!r}, and cannot be loaded from here: {error}\nIn Python "
            "give it: load_adapter(folder, base=…). On the command line, write where it is now into "
            "base_model_name_or_path of adapter_config.json."
        ) from error


def class_for(config: PretrainedConfig) -> Any:
    """Return the class that loads a model with the head in its config.

    The config of a GGUF file has no head; a GGUF file contains a causal language model.

    Raises:
        SourceError: no class loads this head.
    """
    name = (getattr(config, "architectures", None) or ["ForCausalLM"])[0]
    head = re.search(r"For([A-Z]\w*)$", name)
    if head is not None:
        auto_name = f"AutoModelFor{head.group(1)}"
    elif name.endswith("LMHeadModel") or name.removeprefix(CLASS_PREFIX) in classes_of("AutoModelForCausalLM"):
        auto_name = "AutoModelForCausalLM"
    elif name.endswith("HeadsModel"):
        if not hasattr(transformers, name):
            raise SourceError(
                f"no Auto class loads {name!r}. Load it with its own class and give it to hf_posswap.swap."
            )
        return getattr(transformers, name)  # no Auto class has this head, and AutoModel would remove it
    else:
        auto_name = "AutoModel"
    return drop_in(auto_name)

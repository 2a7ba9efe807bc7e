"""Swap the positional mechanism of a pretrained Hugging Face model in one argument.

    from hf_posswap import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("gpt2", pos_scheme="alibi")

Importing this package imports neither torch nor transformers' models; names are loaded when first used. It does make
transformers' Auto classes load swapped checkpoints.
"""

import importlib
from typing import Any

from hf_posswap.registration.import_hook import when_imported
from hf_posswap.version import __version__

_HOME = {
    "swap": "swapping",
    "restore": "swapping",
    "is_swapped": "swapped.questions",
    "without_scheme": "swapped.questions",
    "longest_position": "swapped.questions",
    "train_length": "swapped.questions",
    "describe": "swapped.description",
    "inspect": "swapped.inspection",
    "fit_tokenizer": "swapped.tokenizers",
    "calibrate": "calibration",
    "heal": "training.loop",
    "HealingOptions": "training.options",
    "install": "auto",
    "uninstall": "auto",
    "capabilities": "swapped.capabilities",
    "export_native": "export",
    "list_schemes": "schemes",
    "parse_scheme": "schemes",
    "list_architectures": "swapped.capabilities",
    "PosSwapError": "errors",
}
"""Public names and the module each lives in; scheme configs and Auto classes are found by name."""


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module = importlib.import_module(f"hf_posswap.{_HOME[name]}")
        value = getattr(module, name)
    elif name.startswith("AutoModel"):
        from hf_posswap.auto import auto_class

        value = auto_class(name)
    elif name.endswith("Config") and not name.startswith("_"):
        value = _scheme_config(name)
    else:
        raise AttributeError(f"module 'hf_posswap' has no attribute {name!r}")
    globals()[name] = value
    return value


def _scheme_config(name: str) -> Any:
    from hf_posswap.schemes import schemes

    for scheme in schemes:
        if scheme.config_class.__name__ == name:
            return scheme.config_class
    raise AttributeError(f"module 'hf_posswap' has no attribute {name!r}")


def __dir__() -> list[str]:
    from hf_posswap.loading.auto_classes import auto_model_classes
    from hf_posswap.schemes import schemes

    configs = [scheme.config_class.__name__ for scheme in schemes]
    return sorted([*_HOME, *configs, *auto_model_classes(), "__version__"])


def _register() -> None:
    from hf_posswap.registration.deferred_configs import register_deferred

    register_deferred()


def _let_models_publish() -> None:
    from hf_posswap.modeling import SwappedModel

    SwappedModel.pos_publish = staticmethod(_push_model)


def _push_model(model: Any, repo_id: str, **kwargs: Any) -> Any:
    from hf_posswap.hub import push_model

    return push_model(model, repo_id, **kwargs)


def _teach_peft() -> None:
    import hf_posswap.adapters.hooks  # noqa: F401  it registers what it patches


when_imported("transformers.models.auto.configuration_auto", _register)
when_imported("hf_posswap.modeling", _let_models_publish)
when_imported("peft", _teach_peft)

__all__ = [*_HOME, "__version__"]

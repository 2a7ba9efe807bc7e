"""Healing: a fine-tune whose teacher is the stock model, run by Accelerate."""

import importlib
from typing import Any

_HOME = {
    "HealingError": "options",
    "HealingOptions": "options",
    "TrainingCheckpointError": "checkpoints",
    "HealingObserver": "loop",
    "HealingReport": "loop",
    "heal": "loop",
    "make_accelerator": "distribution",
    "add_lora": "adapters",
    "load_adapter": "adapters",
    "Windows": "texts",
    "from_dataset": "documents",
    "from_files": "documents",
    "refine": "refinement",
    "stock_copy": "teacher",
}
"""Public names and their modules, imported at first use because accelerate and peft are slow to import."""


__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hf_posswap.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hf_posswap.training.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)

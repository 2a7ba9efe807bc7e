"""Healing: a fine-tune whose teacher is the stock model, run by Accelerate."""

from hf_posswap.common.lazy import lazily

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
__getattr__, __dir__ = lazily(__name__, _HOME)

"""Evaluation: measurements of a model's quality by context length. Every function returns a pandas data frame."""

from hf_posswap.common.lazy import lazily

_HOME = {
    "PROTOCOLS": "windows",
    "EvaluationError": "errors",
    "TextTooShortError": "errors",
    "key_tokens": "key_token_choice",
    "loss_by_position": "frames",
    "masked_loss_by_length": "frames",
    "needles": "frames",
    "passkey": "frames",
    "perplexity_by_length": "frames",
    "retrieval": "frames",
    "ruler_by_length": "frames",
}
"""Public names and their modules, imported at first use, so that the command line reads the settings at once."""

__all__ = list(_HOME)
__getattr__, __dir__ = lazily(__name__, _HOME)

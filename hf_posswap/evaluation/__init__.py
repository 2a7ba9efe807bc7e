"""Evaluation: measurements of a model's quality by context length. Every function returns a pandas data frame."""

from hf_posswap.evaluation.errors import EvaluationError, TextTooShortError
from hf_posswap.evaluation.frames import (
    loss_by_position,
    masked_loss_by_length,
    passkey,
    perplexity_by_length,
    retrieval,
)
from hf_posswap.evaluation.perplexity import PROTOCOLS

__all__ = [
    "PROTOCOLS",
    "EvaluationError",
    "TextTooShortError",
    "loss_by_position",
    "masked_loss_by_length",
    "passkey",
    "perplexity_by_length",
    "retrieval",
]

"""Measuring: how well a model reads text as the text grows longer."""

from hf_posswap.evaluation.errors import EvaluationError, TextTooShortError
from hf_posswap.evaluation.perplexity import PROTOCOLS, LengthRow, perplexity_by_length, to_frame

__all__ = [
    "PROTOCOLS",
    "EvaluationError",
    "LengthRow",
    "TextTooShortError",
    "perplexity_by_length",
    "to_frame",
]

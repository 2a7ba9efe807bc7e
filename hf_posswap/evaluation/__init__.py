"""Measuring: how well a model reads text as the text grows longer."""

from hf_posswap.evaluation.errors import EvaluationError, TextTooShortError
from hf_posswap.evaluation.frames import perplexity_by_length
from hf_posswap.evaluation.perplexity import PROTOCOLS

__all__ = [
    "PROTOCOLS",
    "EvaluationError",
    "TextTooShortError",
    "perplexity_by_length",
]

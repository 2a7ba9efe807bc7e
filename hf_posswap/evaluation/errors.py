"""Errors of evaluation."""

from hf_posswap.errors import PosSwapError


class EvaluationError(PosSwapError):
    """A measurement is not possible with these lengths, budgets, models or files."""


class UnmeasurableError(EvaluationError):
    """A measurement is not possible with this model, tokenizer or text, for any settings."""


class TextTooShortError(UnmeasurableError):
    """A text has fewer tokens than one window of the longest length."""

"""Errors of measuring."""

from hf_posswap.errors import PosSwapError


class EvaluationError(PosSwapError):
    """Something that cannot be measured as asked: lengths, budgets, models or files that do not fit."""


class UnmeasurableError(EvaluationError):
    """A model, tokenizer or text of which something cannot be measured, whatever the settings."""


class TextTooShortError(UnmeasurableError):
    """A text with fewer tokens than one window of the longest length needs."""

"""Errors of measuring."""

from hf_posswap.errors import PosSwapError


class EvaluationError(PosSwapError):
    """Something that cannot be measured as asked: lengths, budgets, models or files that do not fit."""


class TextTooShortError(EvaluationError):
    """A text with fewer tokens than one window of the longest length needs."""

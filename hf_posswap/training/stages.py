"""Stages of a model's life that every experiment shares: calibrated on the text it will heal on, and its control."""

import dataclasses
from collections.abc import Callable
from typing import Any

from hf_posswap.auto import CALIBRATION_LENGTH
from hf_posswap.calibration import CalibrationReport, calibrate
from hf_posswap.swapped.questions import train_length
from hf_posswap.training.options import HealingOptions
from hf_posswap.training.texts import Documents, Windows

CALIBRATION_TOKENS = 8192


def calibrate_on(
    model: Any,
    documents: Documents,
    tokenizer: Any,
    *,
    tokens: int = CALIBRATION_TOKENS,
    column: str = "text",
    progress: Callable[[int, int], None] | None = None,
    measure: bool = True,
) -> CalibrationReport:
    """Calibrate a swapped model, in place, on windows of as many of the documents as `tokens` allow.

    Args:
        model: a swapped model whose scheme calibration can fit.
        documents: texts; see `Windows`.
        tokenizer: the model's tokenizer.
        tokens: how many to read.
        column: column of the documents with the texts, if they are mappings.
        progress: see `hf_posswap.calibrate`.
        measure: see `hf_posswap.calibrate`.

    Raises:
        HealingError: no document has as many tokens as one window.
        UnsupportedError: the scheme has nothing to fit.
    """
    length = calibration_length(train_length(model))
    windows = Windows(documents, tokenizer, length, packing=False, column=column).spread(max(1, tokens // length))
    return calibrate(model, windows, progress, measure=measure)


def calibration_length(train_length: int) -> int:
    """Return how many tokens calibration reads at once."""
    return min(CALIBRATION_LENGTH, train_length)


def control_options(options: HealingOptions) -> HealingOptions:
    """Return how the unswapped model is healed beside a swapped one: on the same tokens in the same order and schedule.

    It learns the text itself, since a model that is its own teacher learns nothing, and has nothing to fade out. It
    drops out if the swapped model does.
    """
    return dataclasses.replace(options, distill=0.0, ramp=0.0, dropout=options.drops_out)

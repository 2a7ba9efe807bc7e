"""Stages that all experiments share: calibration on the text for healing, and the options of the control."""

import dataclasses
from collections.abc import Callable
from typing import Any

from hf_posswap.auto import CALIBRATION_LENGTH
from hf_posswap.calibration import CalibrationReport, calibrate, tokens_to_read
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
) -> CalibrationReport:
    """Calibrate a swapped model, in place, on windows of as many of the documents as `tokens` allow.

    Args:
        model: a swapped model whose scheme calibration can fit.
        documents: texts; see `Windows`.
        tokenizer: the model's tokenizer.
        tokens: number of tokens to fit to; an eighth more is read to measure on.
        column: column of the documents with the texts, if they are mappings.
        progress: see `hf_posswap.calibrate`.

    Raises:
        HealingError: the documents together have fewer tokens than one window.
        UnsupportedError: the scheme has no parameters that calibration can fit.
    """
    length = calibration_length(train_length(model))
    count = tokens_to_read(max(tokens, length), length) // length
    windows = Windows(documents, tokenizer, length, packing=False, column=column).spread(count)
    return calibrate(model, windows, progress, tokenizer=tokenizer)


def calibration_length(train_length: int) -> int:
    """Return the tokens of a window in calibration."""
    return min(CALIBRATION_LENGTH, train_length)


def control_options(options: HealingOptions) -> HealingOptions:
    """Return the options of the control, the stock model, which is trained on the same tokens with the same schedule.

    The control is trained without distillation, because a model that is its own teacher has a loss of zero, and without
    a ramp, because no mechanism is replaced. It uses dropout if the swapped model does.
    """
    return dataclasses.replace(options, distill=0.0, ramp=0.0, dropout=options.drops_out)

"""Comparison of schemes on one model: the stock model and each swapped model on the same texts and lengths.

`prepare` checks all settings before any long computation. `run` takes the model through its stages (swapped,
calibrated, healed) once for each scheme and seed, and the stock model and its control besides, and measures each stage.
"""

from hf_posswap.comparison.cells import Cell, Outcome
from hf_posswap.comparison.observer import Observer
from hf_posswap.comparison.preparation import Prepared, Refusal, prepare
from hf_posswap.comparison.record import remove_comparison
from hf_posswap.comparison.running import run
from hf_posswap.comparison.settings import CALIBRATION_TOKENS, STOCK, Settings, recipe

__all__ = [
    "CALIBRATION_TOKENS",
    "STOCK",
    "Cell",
    "Observer",
    "Outcome",
    "Prepared",
    "Refusal",
    "Settings",
    "prepare",
    "recipe",
    "remove_comparison",
    "run",
]

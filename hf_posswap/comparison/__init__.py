"""Comparing schemes on one model: the same text and lengths for the stock model and for each scheme swapped in.

`prepare` finds everything that cannot work before anything long starts; `run` takes the model through its stages once
for each scheme and seed (swapped, calibrated, healed; stock and its control beside them) and measures each.
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

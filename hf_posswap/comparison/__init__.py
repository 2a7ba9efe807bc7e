"""Comparing schemes on one model: the same text and lengths for the stock model and for each scheme swapped in.

`prepare` finds everything that cannot work before anything long starts; `run` loads the model once for each scheme,
swaps and measures.
"""

from hf_posswap.comparison.observer import Observer
from hf_posswap.comparison.preparation import Prepared, Refusal, prepare
from hf_posswap.comparison.running import run
from hf_posswap.comparison.settings import STOCK, Settings

__all__ = ["STOCK", "Observer", "Prepared", "Refusal", "Settings", "prepare", "run"]

"""The option --precision of commands that heal: its default, and the message about it."""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_posswap.commands.console import note

PRECISION_HELP = "bf16: compute in bfloat16. Default: bf16 if the device has instructions for it."


def decide_precision(given: str | None, device: str, begun: str | None = None) -> str:
    """Return the precision of healing, and print on stderr the chosen one, or that the given one is slow.

    Args:
        given: the value of --precision, if it was given.
        device: the device of healing, such as "cpu" or "cuda".
        begun: the precision of the run to resume, which a new choice must not change.
    """
    from hf_posswap.training.precision import SlowPrecisionWarning, choice_in_words, fast_precision, slowness

    # The line printed below replaces the warning, which `heal` would issue for every model of a comparison.
    warnings.filterwarnings("ignore", category=SlowPrecisionWarning)
    asked = given or begun
    chosen = asked or fast_precision(device)
    said = choice_in_words(fast_precision(device), device) if asked is None else slowness(asked, device)
    if said is not None and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        note(said)
    return chosen


def begun_precision(path: Path | None, keys: Sequence[str]) -> str | None:
    """Return the precision in a JSON file of an earlier run; None if it cannot be read, which is an error elsewhere.

    Args:
        path: the file, if there is an earlier run.
        keys: keys that lead to the options of healing in the file.
    """
    if path is None or not path.is_file():
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        for key in (*keys, "precision"):
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def precision_of_experiment(given: str | None, device: str | None, earlier: Path | None) -> str:
    """Return the precision of healing in an experiment that a results folder records, see `decide_precision`.

    Args:
        given: the value of --precision, if it was given.
        device: the value of --device, if it was given.
        earlier: JSON file of the experiment to resume; None: there is none.

    Raises:
        EvaluationError: the device cannot be used.
    """
    from hf_posswap.evaluation.preparation import chosen_device

    return decide_precision(given, chosen_device(device).type, begun_precision(earlier, ("settings", "healing")))

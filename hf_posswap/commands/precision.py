"""The option --precision of commands that heal: what it is unless given, and what is said of it."""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_posswap.commands.console import note

PRECISION_HELP = "bf16: compute in bfloat16. Default: bf16 where the device is fast at it."


def decide_precision(given: str | None, device: str, begun: str | None = None) -> str:
    """Return the precision to heal in, and say on stderr what was chosen, or that what is given is slow.

    Args:
        given: what --precision says, if it was given.
        device: where healing will run, such as "cpu" or "cuda".
        begun: the precision of the run that is gone on from, which a choice of today must not change.
    """
    from hf_posswap.training.precision import SlowPrecisionWarning, choice_in_words, fast_precision, slowness

    # The command's one line below says it; `heal` would say it again for every model of a comparison.
    warnings.filterwarnings("ignore", category=SlowPrecisionWarning)
    asked = given or begun
    chosen = asked or fast_precision(device)
    said = choice_in_words(fast_precision(device), device) if asked is None else slowness(asked, device)
    if said is not None and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        note(said)
    return chosen


def begun_precision(path: Path | None, keys: Sequence[str]) -> str | None:
    """Return the precision in a JSON file of an earlier run; None if it is not there, for others to complain of.

    Args:
        path: the file, if there is an earlier run.
        keys: where in it the options of healing are.
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

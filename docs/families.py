"""Write hf_posswap/swapped/families.json: which model types take schemes, as a run of their tests finds.

    python docs/families.py [TYPE …]

Every causal and masked language model that transformers has is made small, from its own defaults, and swapped to
several schemes; see tests/families/checks.py for what is checked of each. A family is supported if every check passes
with ALiBi, T5's bias and RoPE, and what it refuses of the rest has its reason.
"""

import json
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import Any

import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hf_posswap
from hf_posswap.swapped.capabilities import FAMILIES_FILE
from hf_posswap.swapped.questions import native_scheme
from tests.families.checks import SCHEMES, Outcome, outcome
from tests.families.configs import CANNOT, model_types, tiny_model

NEEDED = ("alibi", "t5", "rope")
"""Schemes without which a family does not count as supported."""
LONGEST = 300
"""Characters of a reason that are kept."""


def found(model_type: str, causal: bool) -> dict[str, Any]:
    """Return a family's entry."""
    entry = {"model_type": model_type, "mode": "causal" if causal else "encoder", "native": None}
    if model_type in CANNOT:
        return entry | {"supported": False, "reason": CANNOT[model_type]}
    try:
        outcomes = {scheme: _outcome(model_type, causal, scheme) for scheme in SCHEMES}
        failed = {name: each for name, each in outcomes.items() if each.kind == "failed"}
        refused = {name: each for name, each in outcomes.items() if each.kind == "refused"}
        supported = not failed and not set(refused) & set(NEEDED)
        entry["native"] = native_scheme(tiny_model(model_type, causal)) if supported else None
        told = failed or refused
        reasons = {f"{', '.join(_alike(told, each))}: {_briefly(each.reason)}" for each in told.values()}
        return entry | {"supported": supported, "reason": " ".join(sorted(reasons)) or None}
    except Exception as error:  # a model that cannot be made small, or reads no text, is listed with what it says
        return entry | {"supported": False, "reason": f"{type(error).__name__}: {_briefly(str(error))}"}


def _outcome(model_type: str, causal: bool, scheme: str) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return outcome(model_type, causal, scheme, Path(folder))


def _briefly(reason: str) -> str:
    """Return a reason without the advice that a failed proof ends with, which is the same for all, and not too long."""
    return textwrap.shorten(reason.partition(" The model is unchanged.")[0], LONGEST, placeholder=" …")


def _alike(outcomes: dict[str, Outcome], one: Outcome) -> list[str]:
    return [name for name, other in outcomes.items() if other.reason == one.reason]


def main(chosen: list[str]) -> None:
    """Run the families and write the file; with names, only those are printed."""
    warnings.filterwarnings("ignore")  # hundreds of random models warn of their configs; outcomes say what counts
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    entries = []
    for model_type, causal, _ in model_types():
        if not chosen or model_type in chosen:
            entries.append(found(model_type, causal))
            print(json.dumps(entries[-1]), flush=True)
    if not chosen:
        content = {"transformers": transformers.__version__, "families": entries}
        FAMILIES_FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        supported = {entry["model_type"] for entry in entries if entry["supported"]}
        print(f"{len(supported)} model types are supported by hf_posswap {hf_posswap.__version__}")


if __name__ == "__main__":
    main(sys.argv[1:])

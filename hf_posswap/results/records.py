"""Records in a checkpoint's folder: how its weights were made, and measurements of them."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from hf_posswap.loading.entry import is_healed
from hf_posswap.results.kinds import KINDS

SWAP_FILE, CALIBRATION_FILE, HEALING_FILE = "swap.json", "calibration.json", "healing.json"
MEASUREMENTS = tuple(kind.file for kind in KINDS.values() if kind.of_weights)
"""Names of the files with measurements of weights, without suffix."""


def remove_records(folder: Path) -> None:
    """Remove the records of the weights in a folder, before other weights are saved there.

    Measurements of other models stay, and so does a comparison, which swaps its models itself.
    """
    for name in (SWAP_FILE, CALIBRATION_FILE, HEALING_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in MEASUREMENTS:
        if _is_of(folder, folder / f"{name}.json"):
            for ending in ("json", "csv"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)


def measured_here(model: Any, folder: Path) -> bool:
    """Return whether a result's model, by the name given to the command, is the one in a folder."""
    return isinstance(model, str) and PurePath(model).name == folder.resolve().name


def stage_of(config: Any, model: str) -> str:
    """Return a model's stage, one of `STAGES`, by its config and the records in its folder.

    Args:
        config: the model's config.
        model: the model's name or folder.
    """
    if getattr(config, "pos_scheme", None) is None:
        return "stock"
    if is_healed(config):
        return "healed"
    return "calibrated" if changed(_content(Path(model) / CALIBRATION_FILE)) else "swapped"


def changed(calibration: Mapping[str, Any]) -> bool:
    """Return whether a record has a calibration that changed the model, that is, was not undone."""
    report, refinement = (calibration.get(name) for name in ("report", "refinement"))
    kept = (report if isinstance(report, Mapping) else calibration).get("kept_start") is True
    return bool(calibration) and (not kept or bool(refinement))


def _is_of(folder: Path, path: Path) -> bool:
    return measured_here(_content(path).get("model"), folder)


def _content(path: Path) -> dict[str, Any]:
    """Return the content of a record; empty if the file does not exist or is not a record."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}

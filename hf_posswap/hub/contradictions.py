"""Detects records in a checkpoint's folder that are of another checkpoint: older ones, or made before it changed."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from hf_posswap.errors import CheckpointError
from hf_posswap.hub.errors import HubError
from hf_posswap.loading.entry import HEALED_KEY, config_from_entry, shown
from hf_posswap.results.kinds import COMPARISON, LENGTHS
from hf_posswap.results.records import HEALING_FILE, SWAP_FILE, measured_here
from hf_posswap.schemes import SchemeConfig

COMPARISON_FILE, LENGTHS_FILE = f"{COMPARISON.file}.json", f"{LENGTHS.file}.json"


def require_no_contradiction(
    folder: Path, records: Mapping[str, Mapping[str, Any]], entry: Mapping[str, Any], adapter: bool = False
) -> None:
    """Refuse records that contradict the config in the same folder.

    Args:
        folder: the folder.
        records: content of the records, by file name.
        entry: the `pos_scheme` entry of the config.
        adapter: whether the config is an adapter's, which is trained while the model's weights are not.

    Raises:
        HubError: a record contradicts the config; the message gives the record and both values.
    """
    options = config_from_entry(entry)
    for name, content in records.items():
        if name == COMPARISON_FILE:
            said = _other_base(content, entry)
        elif name == LENGTHS_FILE and not measured_here(content.get("model"), folder):
            said = None  # a measurement of another model, which the card shows as such
        else:
            said = _other_scheme(name, content, options) or _other_weights(name, content, entry, adapter)
        if said is not None:
            raise HubError(
                f"{name} in {str(folder)!r} contradicts the config: {said}. It tells of a model that was here before, "
                "or the model changed since. Take it out of the folder."
            )


def _other_base(content: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    compared, base = content.get("model"), entry.get("base_model")
    if not isinstance(compared, str) or base is None or PurePath(compared).name == PurePath(base).name:
        return None
    return f"it compares schemes in {shown(compared)}, and the model was made from {shown(base)}"


def _other_scheme(name: str, content: Mapping[str, Any], options: SchemeConfig) -> str | None:
    recorded = content.get("pos_scheme")
    if recorded is None and name == SWAP_FILE and isinstance(content.get("description"), dict):
        described = content["description"]
        recorded = {"format_version": 1, "name": described.get("scheme"), "options": described.get("options")}
    if recorded is None:
        return None
    try:
        known = config_from_entry(recorded)
    except CheckpointError as error:
        return f"its scheme cannot be read ({error})"
    if known == options:
        return None
    return f"it is about scheme {known.to_dict()}, and the config's is {options.to_dict()}"


def _other_weights(name: str, content: Mapping[str, Any], entry: Mapping[str, Any], adapter: bool) -> str | None:
    healed = bool(entry.get(HEALED_KEY))
    if name == HEALING_FILE:
        return (
            None if healed or adapter else "it states that the model was healed, and the config states that it was not"
        )
    recorded = content.get("pos_scheme")
    if name != LENGTHS_FILE or not isinstance(recorded, dict) or bool(recorded.get(HEALED_KEY)) == healed:
        return None
    if healed:
        return "it was measured before the model was healed"
    return "it was measured on a healed model, and the config states that this model was not healed"

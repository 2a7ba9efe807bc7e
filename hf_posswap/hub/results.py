"""Reads the result files in a checkpoint's folder: swap.json, calibration.json, healing.json, measurements by length.

The files may be untrusted: numbers are checked, strings are never interpreted, and missing entries stay missing.
"""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from hf_posswap.hub.contradictions import COMPARISON_FILE, LENGTHS_FILE, require_no_contradiction
from hf_posswap.hub.errors import HubError
from hf_posswap.loading.entry import HEALED_KEY
from hf_posswap.results.healing import is_healing
from hf_posswap.results.kinds import AGREEMENT, STAGES, STOCK
from hf_posswap.results.reading import ResultsError, has_rows, result_file
from hf_posswap.results.records import CALIBRATION_FILE, HEALING_FILE, SWAP_FILE, changed

LARGEST_FILE = 64 * 2**20
"""Maximum bytes of a result file."""


@dataclass(frozen=True)
class Row:
    """One number of a measurement by length.

    Attributes:
        stage: one of `STAGES`.
        scheme: the scheme's specification; "stock" for a stock model, "" for the checkpoint's own scheme.
        protocol: name of the protocol, such as "windows" or "same-targets".
        length: context length in tokens.
        value: perplexity, or the cosine to the stock model's embeddings; None: a gap.
        seed: seed of the run, if the file has it.
        note: reason for a gap.
        own: whether it was measured on the published weights.
    """

    stage: str
    scheme: str
    protocol: str
    length: int
    value: float | None
    seed: int | None = None
    note: str = ""
    own: bool = False


@dataclass(frozen=True)
class Measurement:
    """The rows of one result file.

    Attributes:
        file: name of the file.
        quantity: "perplexity" or "cosine".
        model: the measured model, by its name in the file.
        texts: names of the texts that it was measured on.
        rows: the numbers.
        command: the command of the measurement, without local paths; "" if unknown.
    """

    file: str
    quantity: str
    model: str
    texts: tuple[str, ...]
    rows: tuple[Row, ...]
    command: str = ""


@dataclass(frozen=True)
class CheckpointResults:
    """The results in a checkpoint's folder.

    Attributes:
        swap: content of swap.json.
        calibration: content of calibration.json, or the calibration entry of healing.json.
        healing: content of healing.json.
        measurements: measurements by length.
        healed: whether the weights were trained with the scheme, even if there is no record of it.
    """

    swap: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    healing: Mapping[str, Any] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    healed: bool = False

    @property
    def stage(self) -> str:
        """Stage of the checkpoint: "swapped", "calibrated" or "healed"."""
        return "healed" if self.healing or self.healed else "calibrated" if changed(self.calibration) else "swapped"


def read_results(folder: Path, entry: Mapping[str, Any], adapter: bool = False) -> CheckpointResults:
    """Read the result files of a checkpoint's folder.

    Args:
        folder: the folder.
        entry: the `pos_scheme` entry of the checkpoint's config, which the files are checked against.
        adapter: whether the folder holds an adapter.

    Raises:
        HubError: a file is not a JSON object, is too large, or contradicts the config.
    """
    names = (SWAP_FILE, CALIBRATION_FILE, HEALING_FILE, COMPARISON_FILE, LENGTHS_FILE)
    contents = {name: read_json(folder / name) for name in names if (folder / name).is_file()}
    require_no_contradiction(folder, contents, entry, adapter)
    healing = contents.get(HEALING_FILE, {})
    calibration = contents.get(CALIBRATION_FILE) or part(healing, "calibration")
    measured = [
        _measurement(folder / name, contents[name])
        for name in (COMPARISON_FILE, LENGTHS_FILE, HEALING_FILE)
        if has_rows(contents.get(name)) or is_healing(contents.get(name))
    ]
    return CheckpointResults(
        swap=contents.get(SWAP_FILE, {}),
        calibration=calibration,
        healing=healing,
        measurements=tuple(measurement for measurement in measured if measurement.rows),
        healed=bool(entry.get(HEALED_KEY)),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        HubError: the file holds something else, or is too large.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise HubError(f"{path.name!r} has more than {LARGEST_FILE:,} bytes. Take it out of the folder.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HubError(
            f"cannot read {path.name!r} in {str(path.parent)!r}: {error}. Mend it or take it out."
        ) from error
    if not isinstance(content, dict):
        raise HubError(f"{path.name!r} in {str(path.parent)!r} holds no JSON object. Mend it or take it out.")
    return content


def number(value: Any) -> float | None:
    """Return the value if it is a finite number, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or not math.isfinite(value):
        return None
    return value


def count(value: Any) -> int | None:
    """Return the value if it is a non-negative integer that fits into a table, otherwise None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15 else None


def part(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the object under a key; empty if there is none."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def command_of(content: Mapping[str, Any]) -> str:
    """Return the command that made a result, with file names instead of paths; "" if it is not known."""
    command = part(content, "environment").get("command")
    if not isinstance(command, str):
        return ""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    return shlex.join(without_folders(word) for word in words)


def without_folders(word: str) -> str:
    """Remove the folders of an absolute path, which are specific to the machine that the command ran on."""
    key, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if value.startswith(("/", "~", "\\")) or PureWindowsPath(value).drive:
        value = PureWindowsPath(value).name or "."
    return f"{key}{equals}{value}"


def _measurement(path: Path, content: Mapping[str, Any]) -> Measurement:
    """Return the measurements by length in a result file.

    Raises:
        HubError: the file is not a result file; the message gives the reason.
    """
    try:
        result = result_file(content, str(path))
    except ResultsError as error:
        raise HubError(f"{error} Mend it or take it out.") from error
    quantity = "cosine" if any(row.get("protocol") == AGREEMENT for row in result.rows) else "perplexity"
    rows = [_row(row, quantity) for row in result.rows if row["stage"] in STAGES and count(row.get("length"))]
    texts = tuple(without_folders(name) for text in result.texts if isinstance(name := text.get("name"), str) and name)
    if path.name != HEALING_FILE:
        return Measurement(path.name, quantity, result.model, texts, tuple(rows), command_of(content))
    # The healed model is the checkpoint itself, so its rows are the checkpoint's; the card shows the healing command.
    own = (row if row.scheme == STOCK else replace(row, scheme="") for row in rows)
    return Measurement(path.name, quantity, result.model, texts, tuple(own))


def _row(row: Mapping[str, Any], quantity: str) -> Row:
    loss, value = number(row.get("loss")), number(row.get(quantity))
    if value is None and loss is not None:
        value = 1 - loss if quantity == "cosine" else math.exp(loss) if loss < 700 else None
    protocol, note = str(row.get("protocol", "")), str(row["note"])
    return Row(row["stage"], row["scheme"], protocol, row["length"], value, count(row["seed"]), note)

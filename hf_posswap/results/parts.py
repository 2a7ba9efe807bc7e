"""Finished parts of a long measurement, one file each, so that an interrupted measurement can resume."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hf_posswap.results.files import OutputError, prepare_folder, write_text

FOLDER = "unfinished"
IDENTITY_FILE = "identity.json"


class Parts:
    """The parts in the folder `unfinished` of a results folder, which exists until `finish`.

    Args:
        output_dir: the results folder.
        identity: everything that the parts depend on (settings, texts, model), JSON-ready.

    Raises:
        OutputError: the folder has parts of another measurement or a part that cannot be read, or cannot be written to.
    """

    def __init__(self, output_dir: Path, identity: Mapping[str, Any]) -> None:
        self.folder = prepare_folder(output_dir / FOLDER)
        kept = self.folder / IDENTITY_FILE
        wanted = json.loads(json.dumps(identity))
        if kept.exists() and len(self):
            self._require_same(_read(kept), wanted)
        else:
            write_text(kept, json.dumps(wanted, indent=1, ensure_ascii=False))

    def __len__(self) -> int:
        """Return the number of finished parts."""
        return sum(path.name != IDENTITY_FILE for path in self.folder.glob("*.json"))

    def get(self, name: str) -> Any:
        """Return the value stored under `name`, or None."""
        path = self._path(name)
        return _read(path) if path.exists() else None

    def put(self, name: str, value: Any) -> None:
        """Store a JSON-ready value under `name`, atomically.

        Raises:
            OutputError: the value cannot be written.
        """
        try:
            write_text(self._path(name), json.dumps(value, ensure_ascii=False))
        except OSError as error:
            raise OutputError(
                f"cannot write to {str(self.folder)!r}: {error}. What is measured is kept: make room, then run the "
                "same command again."
            ) from error

    def finish(self) -> None:
        """Remove the folder, after the result was written."""
        shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"part-{quote(name, safe='')}.json"

    def _require_same(self, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        difference = first_difference(kept, wanted)
        if difference is not None:
            key, before, now = difference
            raise OutputError(
                f"{str(self.folder)!r} holds an unfinished measurement with another {key}: {before!r} there, {now!r} "
                "now. Use the settings of that run to continue it, another --output-dir, or --overwrite to start anew."
            )


def first_difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the name and both values of the first entry that differs; None if all are equal.

    Args:
        saved: a mapping that was read from a JSON file.
        now: a JSON-ready mapping; nested mappings are compared entry by entry.
    """
    wanted = json.loads(json.dumps(now))
    for key in sorted(set(saved) | set(wanted)):
        before, after = saved.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = first_difference(before, after)
            if inner is not None:
                return inner
        elif before != after:
            return key, before, after
    return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"cannot read {str(path)!r}, a part of an unfinished measurement: {error}. Remove it, and it is measured "
            "again."
        ) from error

"""Finished parts of a long measurement, one file each, so that an interrupted one goes on where it stopped."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.reporting.files import OutputError, prepare_folder, write_text
from hf_posswap.reporting.identity import first_difference

FOLDER = "unfinished"
IDENTITY_FILE = "identity.json"


class Parts:
    """The parts in the folder `unfinished` of a results folder, which is there until `finish`.

    Args:
        output_dir: the results folder.
        identity: what the parts depend on (settings, texts, model), JSON-ready.

    Raises:
        EvaluationError: the folder has parts of another measurement, or one that cannot be read.
        OutputError: the folder cannot be written to.
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
        """Return how many parts are finished."""
        return sum(path.name != IDENTITY_FILE for path in self.folder.glob("*.json"))

    def get(self, name: str) -> Any:
        """Return what was kept under `name`, or None."""
        path = self._path(name)
        return _read(path) if path.exists() else None

    def put(self, name: str, value: Any) -> None:
        """Keep a JSON-ready value under `name`, atomically.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            write_text(self._path(name), json.dumps(value, ensure_ascii=False))
        except OSError as error:
            raise OutputError(
                f"cannot write to {str(self.folder)!r}: {error}. What is measured is kept: make room, then run the "
                "same command again."
            ) from error

    def finish(self) -> None:
        """Remove the folder: the result is written."""
        shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"part-{quote(name, safe='')}.json"

    def _require_same(self, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        difference = first_difference(kept, wanted)
        if difference is not None:
            key, before, now = difference
            raise EvaluationError(
                f"{str(self.folder)!r} holds an unfinished measurement with another {key}: {before!r} there, {now!r} "
                "now. Give what was given then to go on, another --output-dir, or --overwrite to start anew."
            )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"cannot read {str(path)!r}, a part of an unfinished measurement: {error}. Remove it, and it is measured "
            "again."
        ) from error

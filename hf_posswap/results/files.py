"""Atomic writing of files: a reader gets either the old or the new content."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from hf_posswap.errors import PosSwapError


class OutputError(PosSwapError):
    """A file or folder that cannot be written to."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Call `write` on a temporary file in the folder of `path`, then rename it to `path`.

    Args:
        path: the file to write; its folder must exist.
        write: called with the temporary file's path, which has the same suffix.

    Returns:
        `path`.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files that only their owner can read; give results the permissions of the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` in UTF-8, atomically."""
    return write_atomically(path, lambda temporary: _write_utf8(temporary, text))


def check_folder(path: Path) -> Path:
    """Check that the folder `path` can be written to or created, without creating it.

    Raises:
        OutputError: `path` is a file or below one, or cannot be written to.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise OutputError(f"cannot write to {str(path)!r}: {str(there)!r} is a file. Give a folder.")
    try:
        with tempfile.TemporaryFile(dir=there):
            return path
    except OSError as error:
        raise OutputError(
            f"cannot write to {str(path)!r}: {error.strerror or error} in {str(there)!r}. Give another folder."
        ) from error


def prepare_folder(path: Path) -> Path:
    """Create the folder `path` if it is missing and check that it can be written to.

    Raises:
        OutputError: `path` is a file, or cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {str(path)!r}: {error.strerror or error}. Give a folder that can be written to, "
            "with --output-dir."
        ) from error
    return path


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

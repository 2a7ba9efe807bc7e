"""Names of texts, and reading them."""

import hashlib
import json
from pathlib import Path

import pytest

from hf_posswap.errors import SourceError
from hf_posswap.sources import load_config
from hf_posswap.texts import sources
from hf_posswap.texts.sources import resolve_texts


def test_a_wheel_says_which_texts_it_has_and_where_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CLONED", tmp_path)
    load_config("demo:gpt2")
    assert [text.name for text in resolve_texts("demo:book/test")] == ["frankenstein.txt"]
    assert [text.name for text in resolve_texts("demo:excerpt")] == ["jane-eyre.txt"]
    for name in ("demo:books", "demo:books/train", "demo:book/train", "demo:book/valid"):
        with pytest.raises(SourceError, match=r"is not installed: .* demo:book/test .* demo:excerpt .* in a clone"):
            resolve_texts(name)


def test_demo_books_are_the_two_to_measure_on() -> None:
    assert [text.name for text in resolve_texts("demo:books")] == ["chance.txt", "frankenstein.txt"]
    assert resolve_texts("demo:book/train")[0].name == "jos-boys.txt"


def test_the_books_are_those_of_their_manifest() -> None:
    entries = json.loads((sources.CLONED / "books" / "MANIFEST.json").read_text(encoding="utf-8"))
    excerpts = {f"train/excerpts/{text.name}" for text in resolve_texts("demo:books/train")}
    assert len(excerpts) == 50
    assert {entry["file"] for entry in entries} == set(sources.BOOKS.values()) | excerpts
    for entry in entries:
        [path] = filter(Path.exists, (root / "books" / entry["file"] for root in (sources.PACKAGED, sources.CLONED)))
        content = path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["bytes"] < 1_000_000
        assert {"title", "author", "split", "licence"} <= set(entry)


@pytest.mark.parametrize(
    ("name", "near"), [("demo:book/tran", "demo:book/train"), ("demo:bokks", "demo:books"), ("demo:qqq", None)]
)
def test_unknown_demo_text_suggests_the_nearest_and_lists_the_known_ones(name: str, near: str | None) -> None:
    suggestion = f"Did you mean '{near}'[?] " if near else ""
    allowed = (
        f"unknown demo text '{name}'. {suggestion}Allowed: demo:book/test, demo:book/train, demo:book/valid, demo:b"
    )
    with pytest.raises(SourceError, match=allowed):
        resolve_texts(name)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"  \n", "is empty"), (b"caf\xe9 ", r"is not UTF-8 \(byte 3\)")]
)
def test_texts_that_cannot_be_measured_on(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        resolve_texts(str(file))[0].read()


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbfIt was a dark night.")
    assert resolve_texts(str(file))[0].read() == "It was a dark night."
    file.write_bytes(b"\xef\xbb\xbf \n")
    with pytest.raises(SourceError, match="is empty"):
        resolve_texts(str(file))[0].read()


def test_a_missing_text_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(SourceError, match="cannot read text"):
            resolve_texts(str(path))[0].read()

"""Text files and the documents in them."""

import textwrap
import warnings
from pathlib import Path

import pytest

from hf_posswap.errors import SourceError
from hf_posswap.texts.files import (
    DocumentLengths,
    DocumentsWarning,
    each_line_looks_like_a_text,
    read_files,
    split_documents,
)
from hf_posswap.texts.sources import resolve_texts
from tests import proteins

SENTENCES = "\n".join(f"The sea was calm on day {day} of {'the long ' * (day % 5)}voyage." for day in range(40))


def test_a_document_is_a_file_a_line_or_what_stands_between_blank_lines() -> None:
    text = "One\ntwo\n\n  three \n \n\nfour\n"
    assert split_documents(text, "file") == (text,)
    assert split_documents(text, "lines") == ("One", "two", "three", "four")
    assert split_documents(text, "blank-lines") == ("One\ntwo", "three", "four")


def test_what_identifies_a_file_says_how_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One\r\ntwo\n", encoding="utf-8", newline="")
    (whole,) = read_files([str(tmp_path / "a.txt")])
    (lines,) = read_files([str(tmp_path / "a.txt")], "lines")
    assert (whole.documents, lines.documents) == (("One\ntwo\n",), ("One", "two"))
    assert whole.to_dict() == {"name": "a.txt", "characters": 8, "sha256": whole.sha256}
    assert lines.to_dict() == whole.to_dict() | {"split": "lines", "documents": 2}
    with pytest.raises(SourceError, match=r"'line' \(--documents\). Allowed: file, lines, blank-lines"):
        read_files([str(tmp_path / "a.txt")], "line")


def test_lengths_are_said_in_words() -> None:
    assert str(DocumentLengths.of([40, 69, 55], 1500)) == (
        "1,500 documents of 40 to 69 tokens (half of them 55 or fewer)"
    )
    assert str(DocumentLengths.of([1234])) == "1 document of 1,234 tokens"


@pytest.mark.parametrize("text", ["\n".join(proteins.sequences(40)), SENTENCES], ids=["sequences", "sentences"])
def test_a_file_of_one_text_a_line_that_is_read_as_one_text_is_warned_of(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.warns(DocumentsWarning, match=r"'lines.txt' has 40 lines.*--documents lines") as seen:
        read_files([str(path)])
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for said in ("file", "lines", "blank-lines"):
            read_files([str(path)], said)


def test_books_and_wrapped_prose_are_one_text() -> None:
    book = resolve_texts("demo:book/test")[0].read()
    assert not each_line_looks_like_a_text(book)
    for width in (60, 72, 120):
        assert not each_line_looks_like_a_text("\n".join(textwrap.wrap(" ".join(book[:20_000].split()), width)))
    assert not each_line_looks_like_a_text("A few\nlines")

"""Locations of texts: a file, or a `demo:` name of a book, which needs no download.

A book for measurements and an excerpt for healing are part of hf_posswap; a clone of its repository has more books.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_posswap.common.registry import unknown_name_message
from hf_posswap.errors import SourceError

DEMO_PREFIX = "demo:"
PACKAGED = Path(__file__).resolve().parents[1] / "assets"
"""Folder of the files that every installation has."""
CLONED = PACKAGED.parents[1] / "examples" / "assets"
"""Folder of the files that only a clone of the repository has."""
BOOKS = {"train": "train/jos-boys.txt", "valid": "valid/chance.txt", "test": "test/frankenstein.txt"}
MEASURING_BOOKS = ("valid", "test")
EXCERPTS, EXCERPT = "books/train/excerpts", "books/train/excerpts/jane-eyre.txt"
TRAINING_NAME, EXCERPT_NAME, MEASURING_NAME = "demo:books/train", "demo:excerpt", "demo:book/test"
TEXT_NAMES = ("demo:books", TRAINING_NAME, EXCERPT_NAME, *(f"demo:book/{split}" for split in BOOKS))


@dataclass(frozen=True)
class TextSource:
    """The source of one text.

    Attributes:
        name: name in results.
        path: path of the file.
    """

    name: str
    path: Path

    def read(self) -> str:
        """Return the text.

        Raises:
            SourceError: the file is missing, is not a regular file, is not UTF-8, or is empty.
        """
        try:
            text = self.path.read_text(encoding="utf-8-sig")  # removes the byte order mark, if there is one
        except UnicodeDecodeError as error:
            raise SourceError(
                f"text {str(self.path)!r} is not UTF-8 (byte {error.start}). Convert it to UTF-8."
            ) from error
        except OSError as error:
            raise SourceError(
                f"cannot read text {str(self.path)!r}: {error.strerror}. Give a UTF-8 text file, or "
                f"{', '.join(TEXT_NAMES)}."
            ) from error
        if not text.strip():
            raise SourceError(
                f"text {str(self.path)!r} is empty. Give a file with text in it, or {', '.join(TEXT_NAMES)}."
            )
        return text


def resolve_texts(name: str) -> list[TextSource]:
    """Return the texts of a name: a `demo:` name of `TEXT_NAMES`, or a file.

    `demo:book/test` and `demo:excerpt` are part of hf_posswap; the others are in a clone of its repository.

    Raises:
        SourceError: the `demo:` name is unknown, or the books are missing.
    """
    if not name.startswith(DEMO_PREFIX):
        return [TextSource(Path(name).name, Path(name))]
    if name == "demo:books":
        return [_book(split) for split in MEASURING_BOOKS]
    if name == TRAINING_NAME:
        _require_clone(name)
        found = [path for root in (PACKAGED, CLONED) for path in (root / EXCERPTS).glob("*.txt")]
        return [TextSource(path.name, path) for path in sorted(found, key=lambda path: path.name)]
    if name == EXCERPT_NAME:
        return [TextSource(Path(EXCERPT).name, PACKAGED / EXCERPT)]
    split = name.removeprefix("demo:book/")
    if split not in BOOKS:
        raise SourceError(unknown_name_message("demo text", name, TEXT_NAMES))
    return [_book(split)]


def has_clone() -> bool:
    """Return whether the books of the repository are available; a clone has them, an installed wheel does not."""
    return (CLONED / "books").is_dir()


def _require_clone(name: str) -> None:
    if not has_clone():
        raise SourceError(
            f"{name} is not installed: a wheel of hf_posswap has {MEASURING_NAME} to measure on and {EXCERPT_NAME} to "
            'heal on. The other books are in a clone of its repository, installed with pip install -e ".[demo]".'
        )


def _book(split: str) -> TextSource:
    name = f"demo:book/{split}"
    if name == MEASURING_NAME:
        path = PACKAGED / "books" / BOOKS[split]
    else:
        _require_clone(name)
        path = CLONED / "books" / BOOKS[split]
    return TextSource(path.name, path)

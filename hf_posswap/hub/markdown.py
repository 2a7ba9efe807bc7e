"""Escapes text from files for Markdown, so that it creates no links, HTML, headings or table cells."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST = 300
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#!|<>~&$@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
"""Characters that begin inline markup, and those that turn a bare address into a link."""


def one_line(value: object, longest: int = LONGEST) -> str:
    """Return a value as text on one line, with whitespace collapsed and invisible characters removed, and shortened."""
    visible = (
        character
        for character in re.sub(r"\s+", " ", str(value)[: 10 * longest])
        if character == " " or unicodedata.category(character)[0] != "C"
    )
    text = "".join(visible).strip()
    return text if len(text) <= longest else f"{text[:longest]}…"


def plain(value: object) -> str:
    """Return a value as Markdown that displays its characters literally."""
    return _SPECIAL.sub(r"\\\1", one_line(value))


def code(value: object) -> str:
    """Return a value as a code span, which also works in a table."""
    text = one_line(value).replace("|", "¦")
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def code_block(text: str, language: str = "") -> str:
    """Return lines as a fenced code block, with a fence that does not occur in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a table from cells in Markdown; all but the first `left` columns are aligned to the right."""
    rule = ["---" if index < left else "---:" for index in range(len(columns))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))

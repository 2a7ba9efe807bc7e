"""The code blocks of README and docs, as a reader finds them.

What may stand above a block, as a comment that the rendered page does not show:

- `<!-- not run: REASON -->`: it needs a network, a GPU or hours. Python is still compiled, commands are still parsed.
- `<!-- fails: MESSAGE -->`: it raises an error with that in its message, on purpose.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md"]
    if path.name != "CHANGELOG.md"
)

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)``` *$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(not run: (?P<reason>[^>]+?)|fails: (?P<fails>[^>]+?))\s*-->\s*\Z")
_TITLE = re.compile(r'title="([^"]+)"')
COMMANDS = ("hf-posswap", "make", "pip", "python", "accelerate", "git", "cd")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: path of the page below the repository.
        line: where it begins, counted from 1.
        language: "python", "sh", …; a block without one whose first word is a command counts as "sh".
        title: what stands above it on the rendered page: for Python, the file it is.
        code: its content.
        not_run: why it is not run, or None.
        fails: part of the message of the error that it raises on purpose, or None.
    """

    page: str
    line: int
    language: str
    title: str | None
    code: str
    not_run: str | None
    fails: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    content = (ROOT / page).read_text(encoding="utf-8") if text is None else text
    return list(_blocks(page, content))


def _blocks(page: str, content: str) -> Iterator[Block]:
    for match in _FENCE.finditer(content):
        code = textwrap.dedent(match["code"])
        language = match["info"].split()[0] if match["info"].strip() else ""
        if not language and code.split()[:1] and code.split()[0] in COMMANDS:
            language = "sh"
        mark = _COMMENT.search(content[: match.start()])
        title = _TITLE.search(match["info"])
        yield Block(
            page=page,
            line=content[: match.start()].count("\n") + 1,
            language={"bash": "sh", "shell": "sh", "console": "sh", "py": "python"}.get(language, language),
            title=title[1] if title else None,
            code=code,
            not_run=mark["reason"] if mark else None,
            fails=mark["fails"] if mark else None,
        )


def commands_of(block: Block) -> list[list[str]]:
    """Return the command lines of a shell block as words; lines that end in a backslash go on."""
    import shlex

    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]

"""The page of error messages names messages that there are."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.documents.blocks import ROOT

OF_OTHERS = ("`", "The repository")
"""How messages of transformers and torch begin."""
FILLED = r"…|^unknown "
"""Where messages are put together: what they name, and what kind of name is unknown."""


def messages_on_the_page() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    return [message for row in rows for message in row.split(" / ") if not row.startswith(OF_OTHERS)]


def texts_of_the_package() -> Iterator[str]:
    """Every text in the source that is no docstring, with … for what is filled in."""
    for path in (ROOT / "hf_posswap").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in (node for node in ast.walk(tree) if id(node) not in docstrings):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXTS = list(texts_of_the_package())


@pytest.mark.parametrize("message", messages_on_the_page())
def test_a_message_on_the_page_is_one_of_the_package(message: str) -> None:
    for part in filter(None, map(str.strip, re.split(FILLED, message))):
        assert any(part in text for text in TEXTS), part

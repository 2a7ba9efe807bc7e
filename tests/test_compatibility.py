"""The compatibility table and the tests agree: no row without a test or a reason, no such test without a row."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
NAME = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The cells of every row of the page's tables, their heads left out."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "what" and not set(row[0]) <= set("- ")]


@cache
def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")}


def test_every_row_has_a_test_or_a_reason() -> None:
    assert len(rows()) > 30
    for what, *rest in rows():
        tests = NAME.findall(" ".join(rest))
        for path, name in tests:
            assert name in functions_of(ROOT / path), f"{what}: {path} has no {name}"
        reason = re.search(r"Limitation: (.{20,})", " ".join(rest))
        assert tests or reason, f"{what}: neither a test nor a limitation with its reason"


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "neighbours").glob("test_*.py")), ids=lambda path: path.stem)
def test_every_test_of_a_neighbour_has_a_row(path: Path) -> None:
    named = {name for row in rows() for place, name in NAME.findall(" ".join(row)) if ROOT / place == path}
    assert named == set(functions_of(path))


def test_rows_are_marked_that_need_other_packages() -> None:
    for what, *rest in rows():
        for path, name in NAME.findall(" ".join(rest)):
            source = (ROOT / path).read_text(encoding="utf-8")
            whole_file = re.search(r"^pytestmark = .*mark\.needs", source, re.MULTILINE) is not None
            own = "mark.needs" in "".join(ast.unparse(mark) for mark in functions_of(ROOT / path)[name].decorator_list)
            assert ("⁺" in what) == (whole_file or own), f"{what}: {name}"

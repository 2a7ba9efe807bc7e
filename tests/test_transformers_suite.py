"""How transformers' own tests on swapped models are held against the list of known differences."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "transformers_suite"
CELL = ("gpt2", "t5")


@pytest.fixture(scope="module")
def suite() -> Any:
    """The program `run.py`, as a module."""
    spec = importlib.util.spec_from_file_location("transformers_suite_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def outcome(*failed: str, skipped: str = "") -> dict[str, Any]:
    return {"failed": dict.fromkeys(failed, "AssertionError: no"), "skipped": skipped, "seconds": 0.1}


@pytest.mark.parametrize(
    ("swapped", "stock", "found"),
    [
        (outcome(""), outcome(), ["test_one"]),
        (outcome("GPT2Model"), outcome(), ["test_one GPT2Model"]),
        (outcome(skipped="no attention"), outcome(), ["test_one skipped"]),
        (outcome("A", "B"), outcome("A"), ["test_one B"]),
        (outcome("A"), outcome(""), []),
        (outcome(""), outcome(""), []),
        (outcome(skipped="slow"), outcome(skipped="slow"), []),
        (outcome(), outcome(""), []),
    ],
)
def test_a_difference_is_what_stock_does_not_do(suite: Any, swapped: Any, stock: Any, found: list[str]) -> None:
    differences = suite.found_differences(*CELL, {"test_one": swapped}, {"test_one": stock})
    assert [one.test for one in differences] == found


def test_a_difference_has_to_be_in_the_list(suite: Any) -> None:
    found = suite.Difference("test_one GPT2Model", *CELL, "AssertionError: no")
    cells = {CELL: {"test_one": outcome("GPT2Model")}}
    for known in ([], [suite.Difference("test_one *", "llama", "*", "a reason")]):
        (line,) = suite.unlike([found], known, cells)
        assert "not in differences.yaml: test_one GPT2Model (gpt2, t5): AssertionError: no" in line
    assert suite.unlike([found], [suite.Difference("test_one *", "bert, gpt2", "t5", "a reason")], cells) == []


def test_what_is_in_the_list_has_to_differ_in_every_cell(suite: Any) -> None:
    cells = {(family, "t5"): {"test_one": outcome()} for family in ("gpt2", "llama")}
    found = [suite.Difference("test_one", "llama", "t5", "AssertionError: no")]
    (line,) = suite.unlike(found, [suite.Difference("test_one", "*", "*", "a reason")], cells)
    assert "test_one (gpt2, t5)" in line
    # A test that was not run says nothing.
    assert suite.unlike(found, [suite.Difference("test_*ne", "llama", "*", "")], cells) == []
    assert suite.unlike([], [suite.Difference("test_two", "*", "*", "")], cells) == []


def test_every_entry_of_the_list_has_a_reason_and_a_cell(suite: Any) -> None:
    for entry in suite.known_differences():
        assert len(entry.reason) > 40, entry.test
        cells = [(family, scheme) for family, schemes in suite.CELLS.items() for scheme in schemes]
        assert any(entry.is_at(*cell) for cell in cells), entry.test

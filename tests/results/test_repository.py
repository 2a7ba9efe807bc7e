"""The result files in the repository: few, small, and each read by the documentation."""

import json
from pathlib import Path

from hf_posswap.results.groups import read_results
from hf_posswap.results.healing import MOST_STEPS

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
LARGEST = 1_500_000
"""Bytes of all of them."""


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) < LARGEST


def test_every_table_and_picture_is_named_by_a_page_or_by_what_writes_it() -> None:
    told = "".join(path.read_text(encoding="utf-8") for path in [*DOCS.glob("*.py"), *DOCS.glob("*.md")])
    others = [path for path in RESULTS.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert [path for path in others if path.name not in told] == []


def test_every_record_is_read_and_has_few_steps() -> None:
    left_out = read_results(RESULTS).notes
    assert all("finetune measures on --eval-file" in note for note in left_out)
    for path in RESULTS.rglob("healing.json"):
        healing = json.loads(path.read_text(encoding="utf-8"))
        for run in filter(None, (healing["healing"], healing["control"])):
            assert len(run["history"]) <= MOST_STEPS

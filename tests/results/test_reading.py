"""Reading a folder of results: what is taken, what is refused, and how."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting.naming import told_apart
from hf_posswap.results.groups import read_results
from hf_posswap.results.reading import ResultsError
from tests.reporting import fixtures

OLD = Path(__file__).parent / "first_edition" / "compare.json"


def refusal(folder: Path) -> str:
    with pytest.raises(ResultsError) as raised:
        read_results(folder)
    return str(raised.value)


def test_every_kind_is_read_at_any_depth(tmp_path: Path) -> None:
    results = read_results(fixtures.write_all(tmp_path / "deep" / "down").parents[1])
    assert {group.family for group in results.groups} == {
        "lengths", "positions", "passkey", "retrieval", "bench", "biases"
    }  # fmt: skip
    assert results.models() == ["made-up", "made-up encoder"]
    assert results.keys()[:2] == ["stock", "control"]
    assert results.notes == ()


def test_files_from_before_there_were_stages_are_read(tmp_path: Path) -> None:
    shutil.copy(OLD, tmp_path)
    (group,) = read_results(tmp_path).groups
    assert group.train_length == 256
    assert {row["stage"] for row in group.rows if row["scheme"] == "stock"} == {"stock"}
    assert {row["stage"] for row in group.rows if row["scheme"] != "stock"} == {"swapped"}
    assert {row["seed"] for row in group.rows} == {0}


def test_files_of_one_model_and_text_come_together_and_equal_rows_stand_once(tmp_path: Path) -> None:
    whole = fixtures.lengths()
    for stage in ("stock", "swapped", "healed"):
        part = [row for row in whole["rows"] if row["stage"] in ("stock", stage)]
        fixtures.write(tmp_path / stage, "compare", whole | {"rows": part})
    (group,) = read_results(tmp_path).groups
    assert len(group.files) == 3
    assert len(group.rows) == len([row for row in whole["rows"] if row["stage"] in ("stock", "swapped", "healed")])


def test_files_that_disagree_stay_apart(tmp_path: Path) -> None:
    record = fixtures.lengths()
    fixtures.write(tmp_path / "one", "compare", record)
    changed = [row | {"loss": row["loss"] and row["loss"] + 1} for row in record["rows"]]
    fixtures.write(tmp_path / "two", "compare", record | {"rows": changed})
    groups = read_results(tmp_path).groups
    assert [group.files[0].path for group in groups] == ["one/compare.json", "two/compare.json"]
    assert [told_apart(group) for group in groups] == ["in one/compare.json", "in two/compare.json"]


def test_other_texts_stay_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        text = {"name": f"{name}.txt", "tokens": 9, "sha256": name}
        fixtures.write(tmp_path / name, "compare", fixtures.lengths() | {"texts": [text]})
    assert [told_apart(group) for group in read_results(tmp_path).groups] == ["on one.txt", "on two.txt"]


def test_a_folder_without_results_says_what_was_looked_for(tmp_path: Path) -> None:
    fixtures.write(tmp_path, "config", {"model_type": "gpt2"})
    message = refusal(tmp_path)
    assert "holds no results" in message
    assert "passkey" in message
    assert "found 1 other JSON file." in message
    assert "is no folder" in refusal(tmp_path / "none")


def test_a_kind_of_tomorrow_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    fixtures.write(tmp_path, "dreams", fixtures.lengths() | {"kind": "dreams"})
    assert "'dreams'" in refusal(tmp_path)
    fixtures.write(tmp_path, "compare", fixtures.lengths())
    (note,) = read_results(tmp_path).notes
    assert "dreams.json" in note
    assert "'dreams'" in note


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"rows": [', "Expecting value"),
        (b'{"rows": [NaN]}', "NaN is no JSON number"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"kind": "bench", "format_version": 2, "rows": []}', "its format version is 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    fixtures.write(tmp_path, "compare", fixtures.lengths())
    (tmp_path / "broken.json").write_bytes(content)
    message = refusal(tmp_path)
    assert "broken.json" in message
    assert reason in message


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("length", "long", "row 1: its 'length' is 'long', not a number"),
        ("length", None, "row 1: its 'length' is None, not a number"),
        ("length", True, "row 1: its 'length' is True, not a number"),
        ("loss", [1], "row 1: its 'loss' is [1], not a number"),
        ("loss_low", "low", "row 1: its 'loss_low' is 'low', not a number"),
        ("scheme", 3, "row 1: its 'scheme' is 3, not a text"),
        ("protocol", None, "row 1: its 'protocol' is None, not a text"),
        ("stage", {}, "row 1: its 'stage' is {}, not a text"),
    ],
)
def test_a_row_that_breaks_the_contract_is_named(tmp_path: Path, column: str, value: Any, reason: str) -> None:
    record = fixtures.lengths()
    record["rows"][0][column] = value
    fixtures.write(tmp_path, "compare", record)
    message = refusal(tmp_path)
    assert "compare.json" in message
    assert reason in message


def test_a_row_without_a_column_is_named(tmp_path: Path) -> None:
    record = fixtures.passkey()
    del record["rows"][4]["depth"]
    fixtures.write(tmp_path, "passkey", record)
    assert "row 5: it has no 'depth'" in refusal(tmp_path)
    fixtures.write(tmp_path, "passkey", record | {"rows": [3]})
    assert "row 1: it is no object with columns" in refusal(tmp_path)


def test_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    fixtures.write(tmp_path, "compare", fixtures.lengths())
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "half.json").write_text('{"rows": ')
    assert len(read_results(tmp_path).groups) == 1
    assert json.loads((tmp_path / "compare.json").read_text())


def test_a_swapped_checkpoint_stands_beside_the_model_it_was_made_from(tmp_path: Path) -> None:
    whole = fixtures.lengths()
    fixtures.write(tmp_path / "a", "lengths", whole | {"rows": [r for r in whole["rows"] if r["scheme"] == "stock"]})
    healed = [row | {"model": "out/healed"} for row in whole["rows"] if row["stage"] == "healed"]
    origin = {"pos_scheme": {"name": "alibi", "base_model": "made-up"}}
    fixtures.write(tmp_path / "b", "lengths", whole | origin | {"model": "out/healed", "rows": healed})
    (group,) = read_results(tmp_path).groups
    assert group.model == "made-up"
    assert {row["stage"] for row in group.rows} == {"stock", "control", "healed"}

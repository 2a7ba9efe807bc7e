"""Result files: what is written is read again, and what is no result is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.results.kinds import KINDS, LENGTHS, Kind
from hf_posswap.results.reading import ResultsError, read_result, result_file
from hf_posswap.results.writing import make_result, to_json, write_result


def row_of(kind: Kind) -> dict[str, Any]:
    return {column.name: "a" if column.holds is str else 1 for column in kind.columns}


def result(**row: Any) -> dict[str, Any]:
    rows = [row_of(LENGTHS) | row | {"seconds": 3.5}]
    what = {"model": "demo:gpt2", "seed": 3, "settings": {"tokens": 64}}
    return make_result(LENGTHS, rows, **what, texts=[{"name": "a"}], environment={"time": "now"}, train_length=256)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = result(scheme="rope:yarn:factor=4", loss=1.25, note="a, b")
    files = write_result(written, tmp_path)
    assert [path.name for path in files] == ["lengths.csv", "lengths.json"]
    assert json.loads((tmp_path / "lengths.json").read_text()) == written
    assert read_result(tmp_path / "lengths.json") == result_file(written, str(tmp_path / "lengths.json"))
    assert written["train_length"] == 256
    lines = (tmp_path / "lengths.csv").read_text().splitlines()
    assert lines[0] == "model,scheme,stage,seed,protocol,length,loss,perplexity,loss_low,loss_high,tokens,windows,note"
    assert lines[1] == 'a,rope:yarn:factor=4,a,1,a,1,1.25,1,1,1,1,1,"a, b"'


def test_times_stay_out_of_the_rows() -> None:
    assert "seconds" not in result()["rows"][0]


def test_what_is_not_finite_is_a_missing_value(tmp_path: Path) -> None:
    write_result(result(perplexity=math.inf, loss=None), tmp_path)
    assert read_result(tmp_path / "lengths.json").rows[0]["perplexity"] is None
    assert (tmp_path / "lengths.csv").read_text().splitlines()[1] == "a,a,a,1,a,1,,,1,1,1,1,a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "cannot read") for text in ("", "{", "nonsense")),
        *((text, "no rows") for text in ("[]", "{}", '{"rows": 3}')),
        ('{"rows": [], "kind": "dreams"}', "its kind is 'dreams'"),
        (json.dumps({"format_version": 9, "rows": []}), "format version is 9"),
    ],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=rf"{message}|bad\.json") as caught:
        read_result(path)
    assert message in str(caught.value)
    assert "bad.json" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"cannot read .*none\.json': No such file"):
        read_result(tmp_path / "none.json")


def test_a_row_a_step_and_a_list_of_numbers_take_a_line_each() -> None:
    value = {"a": 1, "rows": [{"x": 1.5, "y": None}, {"x": math.nan, "y": "–"}], "losses": [1, 2], "none": []}
    lines = [
        "{", '  "a": 1,', '  "rows": [', '    {"x": 1.5, "y": null},', '    {"x": null, "y": "–"}', "  ],",
        '  "losses": [1, 2],', '  "none": []', "}",
    ]  # fmt: skip
    assert to_json(value).splitlines() == lines
    assert to_json([]) == "[]\n"


def content_of(kind: Kind, row: dict[str, Any]) -> dict[str, Any]:
    what = {"model": "m", "seed": 3, "settings": {}, "texts": [], "environment": {}}
    return make_result(kind, [row], **what)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_rows_of_every_kind_are_written_and_read(kind: Kind, tmp_path: Path) -> None:
    row = row_of(kind)
    table, record = write_result(content_of(kind, row), tmp_path)
    assert [table.name, record.name] == [f"{kind.file}.csv", f"{kind.file}.json"]
    found = read_result(record)
    assert found.kind == kind
    (read,) = found.rows
    assert read.items() >= row.items()
    assert {"model", "scheme", "stage", "seed", "note"} <= set(read)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_column_is_held_to_the_table(kind: Kind) -> None:
    content = content_of(kind, row_of(kind))
    (row,) = content["rows"]
    for column in kind.columns:
        without = {name: value for name, value in row.items() if name != column.name}
        for changed, allowed, reason in (
            (without, column.optional, f"row 1: it has no '{column.name}'"),
            (row | {column.name: None}, column.nullable, f"row 1: its '{column.name}' is None, not a"),
            (row | {column.name: []}, False, rf"row 1: its '{column.name}' is \[\], not a"),
        ):
            if allowed:
                assert result_file(content | {"rows": [changed]}).rows
            else:
                with pytest.raises(ResultsError, match=reason):
                    result_file(content | {"rows": [changed]})


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_has_an_identity_and_something_that_it_measures(kind: Kind) -> None:
    row = row_of(kind)
    assert len(kind.measured) == 1
    for column in kind.columns:
        assert (kind.identity(row | {column.name: "b"}) != kind.identity(row)) == column.identifies

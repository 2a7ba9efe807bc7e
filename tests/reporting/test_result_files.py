"""Result files: what is written is read again, and what is no result is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting.result_files import COLUMNS, ResultFileError, make_result, read_result, write_result


def result(**row: Any) -> dict[str, Any]:
    rows = [{**dict.fromkeys(COLUMNS["loss-by-length"], 0), **row, "seconds": 3.5}]
    what = {"model": "demo:gpt2", "seed": 3, "settings": {"tokens": 64}}
    return make_result(
        "loss-by-length", rows, **what, texts=[{"name": "a"}], environment={"time": "now"}, train_length=256
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = result(scheme="rope:yarn:factor=4", loss=1.25, note="a, b")
    files = write_result(written, tmp_path, "lengths")
    assert [path.name for path in files] == ["lengths.csv", "lengths.json"]
    assert read_result(tmp_path / "lengths.json") == written
    assert written["train_length"] == 256
    lines = (tmp_path / "lengths.csv").read_text().splitlines()
    assert lines[0] == "model,scheme,stage,seed,protocol,length,loss,perplexity,loss_low,loss_high,tokens,windows,note"
    assert lines[1] == '0,rope:yarn:factor=4,0,0,0,0,1.25,0,0,0,0,0,"a, b"'


def test_times_stay_out_of_the_rows() -> None:
    assert "seconds" not in result()["rows"][0]


def test_what_is_not_finite_is_a_missing_value(tmp_path: Path) -> None:
    write_result(result(perplexity=math.inf, loss=None), tmp_path, "lengths")
    assert read_result(tmp_path / "lengths.json")["rows"][0]["perplexity"] is None
    assert (tmp_path / "lengths.csv").read_text().splitlines()[1] == "0,0,0,0,0,0,,,0,0,0,0,0"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot read"), ("[]", "no rows"), (json.dumps({"format_version": 9, "rows": []}), "format version 9")],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ResultFileError, match=rf"{message}|bad\.json") as caught:
        read_result(path)
    assert message in str(caught.value)
    assert "bad.json" in str(caught.value)

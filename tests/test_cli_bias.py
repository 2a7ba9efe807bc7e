"""`hf-posswap bias`: before and after calibration, into files that the report reads."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hf_posswap.commands import app


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bias", *arguments])


def test_schemes_are_written_before_and_after_calibration(tmp_path: Path) -> None:
    schemes = ["--schemes", "alibi,relative_bias,learned", "--longest", "64"]
    text = ["--text", "demo:book/valid", "--tokens", "512", "--length", "128"]
    result = invoke("demo:gpt2", *schemes, *text, "--output-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "biases.json").read_text())
    stages = {(row["scheme"], row["stage"]) for row in record["rows"]}
    assert stages == {
        ("alibi", "swapped"), ("relative_bias", "swapped"), ("relative_bias", "calibrated"), ("learned", "swapped")
    }  # fmt: skip
    assert any(row["value"] for row in record["rows"] if row["stage"] == "calibrated")
    assert record["texts"][0]["tokens"] == 512
    with (tmp_path / "biases.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(record["rows"])
    assert "learned: enters at the embeddings only" in result.stdout
    report = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert report.exit_code == 0, report.output
    assert (tmp_path / "figures" / "bias-demo-gpt2-relative-bias.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is a stock model: name schemes to swap in"),
        (["--schemes", "alibbi"], "Did you mean 'alibi'"),
        (
            ["--schemes", "alibi", "--stage", "cured"],
            "unknown value of stage: 'cured'. Allowed: calibrated, hea",
        ),
        (["--schemes", "t5", "--text", "/no/such.txt"], "cannot read text '/no/such.txt'"),
        (["--schemes", "alibi", "--longest", "0"], "longest is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    result = invoke("demo:gpt2", *options, "--output-dir", str(tmp_path / "out"))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_biases_that_are_there_are_replaced_only_if_asked(tmp_path: Path) -> None:
    what = ["demo:gpt2", "--schemes", "alibi", "--longest", "8", "--output-dir", str(tmp_path)]
    assert invoke(*what).exit_code == 0
    before = (tmp_path / "biases.json").read_bytes()
    refused = invoke(*what, "--seed", "1")
    assert refused.exit_code == 2
    assert "has biases.json already. Give another folder, or --overwrite." in refused.output
    assert (tmp_path / "biases.json").read_bytes() == before
    assert invoke(*what, "--seed", "1", "--overwrite").exit_code == 0
    assert (tmp_path / "biases.json").read_bytes() != before

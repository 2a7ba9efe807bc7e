"""`--documents` in every command that reads texts: one name, one meaning, and said in the output."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hf_posswap.commands import app
from hf_posswap.reporting.report import write_report
from hf_posswap.results.reading import ResultsError
from tests import proteins

LINES = ["--documents", "lines"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    proteins.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


COMMANDS = {
    "evaluate": [
        "evaluate",
        "model",
        "--text",
        "test.txt",
        "--lengths",
        "32",
        "--tokens",
        "256",
        "--measure",
        "masked",
    ],
    "calibrate": ["calibrate", "model", "--pos-scheme", "t5:per_layer=true", "--text", "test.txt", "--tokens", "512"],
    "bias": ["bias", "model", "--schemes", "t5", "--text", "test.txt", "--tokens", "256", "--longest", "32"],
    "compare": ["compare", "--model", "model", "--schemes", "t5", "--text", "test.txt", "--lengths", "32"],
    "finetune": ["finetune", "--model", "model", "--pos-scheme", "t5", "--train-file", "test.txt", "--steps", "1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_reads_texts_says_what_it_read_and_warns_of_lines(name: str, folder: Path) -> None:
    command = [*COMMANDS[name], "--output-dir"]
    said = invoke(*command, "said", *LINES).stderr
    glued = invoke(*command, "glued").stderr
    silent = invoke(*command, "silent", "--documents", "file").stderr
    assert "documents of 4" in said, said
    assert "warning: 'test.txt' has 30 lines" in glued
    assert "has 30 lines" not in said + silent
    refused = CliRunner().invoke(app, [*command, "refused", "--documents", "line"])
    assert refused.exit_code == 2
    assert "Allowed: file, lines, blank-lines" in refused.stderr


def test_a_healed_antibody_model_is_measured_on_sequences_and_reported(folder: Path) -> None:
    command = ["finetune", "--model", "model", "--pos-scheme", "relative_bias", "--train-file", "train.txt"]
    command += ["--eval-file", "test.txt", "--steps", "2", "--control", "--distill", "--output-dir", "out", *LINES]
    stderr = invoke(*command).stderr
    assert "Healing on 60 documents of 40 to 69 tokens" in stderr
    assert "Measuring on 30 documents of 4" in stderr
    healing = json.loads((folder / "out" / "healing.json").read_text())
    assert healing["texts"][0] | {"documents": 60, "split": "lines"} == healing["texts"][0]
    stages = ["stock", "swapped", "calibrated", "healed", "control"]
    assert list(healing["evaluation"]) == stages
    # The default length is the longest sequence between its special tokens: nothing is glued to fill 128.
    longest = max(map(len, (folder / "test.txt").read_text().split())) + 2
    assert {row["length"] for rows in healing["evaluation"].values() for row in rows} == {longest}
    assert {row["windows"] for rows in healing["evaluation"].values() for row in rows} == {30}
    report = write_report(folder / "out")
    page = report.page.read_text(encoding="utf-8")
    assert "What calibration and healing give back" in page
    assert "Masked-token perplexity against length" in page
    assert all(f"<td>{stage}</td>" in page or f">{stage}<" in page for stage in stages)


def test_an_embedding_model_is_reported_by_the_cosines_it_was_measured_at(folder: Path) -> None:
    proteins.write(folder / "embedding", head=False)
    command = ["finetune", "--model", "embedding/model", "--pos-scheme", "t5", "--train-file", "train.txt", "--steps"]
    command += ["2", "--distill", "--eval-file", "test.txt", "--eval-lengths", "16,64", "--output-dir", "out", *LINES]
    invoke(*command)
    cosine = json.loads((folder / "out" / "healing.json").read_text())["evaluation"]["healed"][1]["cosine"]
    page = write_report(folder / "out").page.read_text(encoding="utf-8")
    assert "Agreement with the stock model" in page
    assert f"{cosine:.4g}" in page


def test_a_healing_folder_where_nothing_was_measured_says_so(folder: Path) -> None:
    invoke(*COMMANDS["finetune"], "--output-dir", "out", *LINES)
    with pytest.raises(ResultsError, match="has no stage that was measured: finetune measures on --eval-file"):
        write_report(folder / "out")


def test_learning_from_sequences_that_are_measured_on_is_refused(folder: Path) -> None:
    (folder / "both.txt").write_text((folder / "test.txt").read_text() + (folder / "train.txt").read_text())
    command: list[Any] = [*COMMANDS["finetune"], "--eval-file", "both.txt", "--output-dir", "out", *LINES]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "both.txt" in refused.stderr

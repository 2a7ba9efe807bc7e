"""The study: its list of commands, what of it runs, and that it goes on where it stopped."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import study, study_steps
from tests.documents.commands import check_hf_posswap

ROOT = Path(__file__).parents[1]


class Runner:
    """Stands in for hf-posswap: writes the result that a step waits for, and fails at some step if told to."""

    def __init__(self, steps: Sequence[object], root: Path, fails_at: str = "") -> None:
        self.steps, self.root, self.fails_at = steps, root, fails_at
        self.commands: list[str] = []

    def __call__(self, words: Sequence[str]) -> int:
        self.commands.append(words[0])
        for step in self.steps:
            if step.words(self.root) == list(words):
                path = self.root / step.folder / step.result
                path.parent.mkdir(parents=True, exist_ok=True)
                failed = step.folder == self.fails_at
                command = " ".join(["python", "-m", "hf_posswap.cli", *words])
                path.write_text(json.dumps({"environment": {"command": command}, "complete": not failed}))
                return 2 if failed else 0
        return 0


def test_every_command_of_the_study_exists() -> None:
    for step in study_steps.all_steps():
        check_hf_posswap(step.words(Path("outputs/study")))


def test_every_step_has_a_folder_of_its_own_and_reads_models_that_were_made_before_it() -> None:
    made: list[str] = []
    for step in study_steps.all_steps():
        assert step.folder not in made
        used = [word for word in step.command.split() if "{study}" in word]
        assert all(word.removeprefix("{study}/") in made for word in used), step.folder
        made.append(step.folder)
    assert {step.study for step in study_steps.all_steps()} == set(study_steps.STUDIES)


def test_a_dry_run_prints_the_commands_of_one_part_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main(["--output-dir", str(tmp_path / "study"), "--only", "bert", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(step.study == "bert" for step in study_steps.all_steps())
    assert all(line.startswith("hf-posswap ") and "demo:gpt2" not in line for line in lines)
    assert not (tmp_path / "study").exists()


def test_a_stopped_study_goes_on_and_a_finished_one_runs_nothing(tmp_path: Path) -> None:
    steps = study_steps.bert_steps()
    stopped = Runner(steps, tmp_path, fails_at="bert/rope")
    assert study.run_study(steps, tmp_path, stopped) == 2
    assert stopped.commands == ["evaluate", "evaluate", "finetune"]
    going_on = Runner(steps, tmp_path)
    assert study.run_study(steps, tmp_path, going_on) == 0
    assert going_on.commands == ["finetune", "finetune", "evaluate", "evaluate", "report"]
    finished = Runner(steps, tmp_path)
    assert study.run_study(steps, tmp_path, finished) == 0
    assert finished.commands == []


def test_a_step_for_a_gpu_is_left_out_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [step for step in study_steps.llama_steps() if step.cuda]
    assert steps
    runner = Runner(steps, tmp_path)
    assert study.run_study(steps, tmp_path, runner) == 0
    assert runner.commands == []
    assert "torch sees none" in capsys.readouterr().out
    assert study.run_study(steps, tmp_path, runner, cuda=True) == 0
    assert runner.commands == ["compare", "report"]


def test_result_files_are_copied_and_models_and_tables_are_not(tmp_path: Path) -> None:
    root, target = tmp_path / "study", tmp_path / "results"
    steps = study_steps.bert_steps()
    study.run_study([steps[0], steps[2]], root, Runner(steps, root))
    (root / "bert/rope/model.safetensors").write_bytes(b"weights")
    (root / "bert-retrieval/stock/retrieval.csv").write_text("model")
    assert study.main(["--output-dir", str(root), "--copy-to", str(target)]) == 0
    copied = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert copied == ["bert-retrieval/stock/retrieval.json", "bert/rope/healing.json"]


def test_what_is_copied_is_thinned() -> None:
    rows = [{"distance": distance, "value": 0.5} for distance in (None, *range(65))]
    found = study.kept({"kind": "biases", "rows": rows})["rows"]
    assert [row["distance"] for row in found] == [None, 0, 1, 4, 16, 64]
    history = [{"step": step, "loss": 1.0} for step in range(100)]
    healing = study.kept({"healing": {"history": history}, "control": {"history": history}, "rows": [1]})
    assert len(healing["healing"]["history"]) == len(healing["control"]["history"]) == 25
    comparison = study.kept({"cells": [{"healing": {"losses": [2.0] * 55}}, {"scheme": "t5"}]})
    assert comparison["cells"] == [{"healing": {"losses": [2.0] * 25}}, {"scheme": "t5"}]


@pytest.mark.slow
def test_the_study_runs_the_real_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    tiny = "--model demo:gpt2 --schemes alibi --text demo:book/test --lengths 64 --tokens 128 --seeds {}"
    first, grown = (study_steps.Step("gpt2", "gpt2", "compare.json", f"compare {tiny.format(n)}") for n in (1, 2))
    assert study.run_study([first], tmp_path) == 0
    assert (tmp_path / "report.html").is_file()
    assert study.run_study([first], tmp_path) == 0
    assert "gpt2: done already" in capfd.readouterr().out
    assert not grown.is_done(tmp_path)
    assert study.run_study([grown], tmp_path) == 0
    assert grown.is_done(tmp_path)
    result = json.loads((tmp_path / "gpt2" / "compare.json").read_text())
    assert result["settings"]["seeds"] == 2

"""`hf-posswap search`: what it prints and writes, how it is interrupted, and how it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hf_posswap.commands import app
from hf_posswap.experiments.search import _Search
from hf_posswap.experiments.settings import SearchSettings
from tests.experiments.helpers import STEP


def invoke(settings: SearchSettings, folder: Path, *more: str) -> Result:
    """Run the command with the settings."""
    given = {
        "--text": settings.texts[0],
        "--train-file": settings.train_texts[0],
        "--length": settings.length,
        "--tokens": settings.tokens,
        "--schemes": ",".join(settings.schemes),
        "--calibration-tokens": settings.calibration_tokens,
        "--eval-tokens": settings.eval_tokens,
        "--heal-length": 16,
        "--batch-size": 2,
        "--precision": "no",
        "--output-dir": folder,
    }
    words = [str(word) for pair in given.items() for word in pair]
    switches = ["--hybrids"] if settings.hybrids else []
    return CliRunner().invoke(app, ["search", settings.model, *words, *switches, *more])


@pytest.fixture
def finished(searched: Any, tmp_path: Path) -> Path:
    """A copy of the folder of a search that is complete."""
    shutil.copytree(searched[2], tmp_path / "out")
    return tmp_path / "out"


def test_it_prints_the_ranking_the_costs_of_layers_and_the_recipe(searched: Any, finished: Path) -> None:
    settings, result, _ = searched
    done = invoke(settings, finished)
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert f"from 32 to 64 tokens, {result['budget']['used']:,} of 416 healing tokens used" in words
    assert all(entry["scheme"] in words for entry in result["ranking"])
    assert f"The winner is {result['winner']}." in words
    assert "in one layer alone, at 32 tokens" in words
    assert f"hf-posswap finetune --model {settings.model} --pos-scheme" in words
    assert result["objective"] in words
    assert (finished / "search.png").read_bytes().startswith(b"\x89PNG")
    assert f"{finished / 'winner'}" in done.stdout


def test_json_is_the_content_of_the_file(searched: Any, finished: Path) -> None:
    done = invoke(searched[0], finished, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((finished / "search.json").read_text())


def test_other_settings_are_refused_and_overwrite_starts_anew(
    search: Any, searched: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = invoke(search(tokens=14 * STEP, hybrids=True), finished)
    assert refused.exit_code == 2
    assert "another tokens: 416 there, 448 now" in " ".join(refused.stderr.split())

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Search, "_outcome", interrupt)
    broken = invoke(searched[0], finished, "--overwrite")
    assert broken.exit_code == 130
    assert f"Interrupted. The same command goes on from {finished / 'search.json'}." in " ".join(broken.stderr.split())
    assert not (finished / "winner").exists()


@pytest.mark.parametrize("command", [["compare", "--schemes", "alibi", "--heal-tokens", "64"], ["search"]])
def test_a_device_that_there_is_not_is_refused_before_precision_is_chosen(command: list[str], books: Any) -> None:
    texts = ["--text", books["test"], "--train-file", books["train"]]
    model = ["demo:gpt2", "--length", "512", "--tokens", "64"]
    if command[0] == "compare":
        model = ["--model", "demo:gpt2", "--lengths", "64"]
    refused = CliRunner().invoke(app, [*command, *model, *texts, "--device", "tpu"])
    assert refused.exit_code == 2, refused.exception
    assert "device 'tpu' cannot be used" in refused.stderr


def test_what_cannot_be_searched_is_refused_in_a_line(search: Any, tmp_path: Path) -> None:
    for values, message in (
        ({"schemes": ("alibbi",)}, "Did you mean 'alibi'?"),
        ({"length": 16}, "it reads that far already. Give a longer one, such as --length 128"),
        ({"tokens": STEP}, "3 candidates need at least 64"),
    ):
        refused = invoke(search(**values), tmp_path / "out")
        assert refused.exit_code == 2
        assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()

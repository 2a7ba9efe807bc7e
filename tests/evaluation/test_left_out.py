"""A measurement that cannot be made is left out with its reason, and the others are written."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from hf_posswap.commands import app
from hf_posswap.evaluation import run
from hf_posswap.evaluation.errors import EvaluationError, UnmeasurableError
from hf_posswap.evaluation.passkey_retrieval import PasskeyTask
from hf_posswap.evaluation.run import prepare_evaluation, run_evaluation
from hf_posswap.evaluation.settings import EvaluationSettings
from hf_posswap.reporting.report import write_report
from hf_posswap.sources import load_model, load_tokenizer
from tests import proteins

NO_SENTENCES = "no document has a sentence of 8 to 40 words"
NO_DIGITS = "does not tell the digits apart"


def settings(folder: Path, **changes: Any) -> EvaluationSettings:
    given: dict[str, Any] = {
        "model": str(folder / "model"),
        "texts": (str(folder / "test.txt"),),
        "lengths": (32, 64),
        "tokens": 256,
        "trials": 2,
        "depths": (0.5,),
    }
    return EvaluationSettings(**given | changes)


def test_a_model_of_proteins_is_measured_by_masked_tokens_and_retrieval_says_why_not(tmp_path: Path) -> None:
    model = proteins.write(tmp_path)
    command = ["evaluate", str(model), "--text", str(tmp_path / "test.txt"), "--lengths", "32,64", "--tokens", "256"]
    result = CliRunner().invoke(app, [*command, "--output-dir", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "Retrieval was not measured" in result.stdout
    assert NO_SENTENCES in result.stdout
    lengths, retrieval = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("lengths", "retrieval"))
    assert [row["loss"] > 0 for row in lengths["rows"]] == [True, True]
    assert {row["value"] for row in retrieval["rows"]} == {None}
    assert all(row["note"].startswith(NO_SENTENCES) for row in retrieval["rows"])
    notes = write_report(tmp_path / "out").notes
    assert any(f"retrieval was not measured: {NO_SENTENCES}" in note for note in notes)


def test_what_was_asked_for_by_name_is_an_error(tmp_path: Path) -> None:
    proteins.write(tmp_path)
    with pytest.raises(EvaluationError, match=NO_SENTENCES):
        prepare_evaluation(settings(tmp_path, measurements=("masked", "retrieval")))


def test_so_is_what_leaves_nothing_to_measure(tmp_path: Path) -> None:
    proteins.write(tmp_path, head=False)
    with pytest.raises(EvaluationError, match=NO_SENTENCES):
        prepare_evaluation(settings(tmp_path))


def test_settings_that_make_no_sense_are_errors_whoever_asked(tmp_path: Path) -> None:
    proteins.write(tmp_path)
    with pytest.raises(EvaluationError, match="retrieval among 3 documents says nothing"):
        prepare_evaluation(settings(tmp_path, most_documents=3))


def test_a_model_whose_loss_cannot_be_read_off_its_head_is_still_measured_by_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> Any:
        raise UnmeasurableError("its logits are not its head applied to its last hidden states")

    proteins.write(tmp_path)
    monkeypatch.setattr("hf_posswap.evaluation.reading.find_masked_head", refuse)
    prose = "The sea was calm and the wind blew from the west all day. A boat came in with number {} on its sail. "
    (tmp_path / "prose.txt").write_text("".join(prose.format(number) for number in range(60)), encoding="utf-8")
    prepared = prepare_evaluation(settings(tmp_path, texts=(str(tmp_path / "prose.txt"),), document_tokens=256))
    results = run_evaluation(prepared, tmp_path / "out")
    assert {row["note"] for row in results["lengths"]["rows"]} == {
        "its logits are not its head applied to its last hidden states"
    }
    assert all(row["value"] is not None for row in results["retrieval"]["rows"])
    asked = settings(tmp_path, measurements=("masked",))
    with pytest.raises(UnmeasurableError, match="its logits are not its head"):
        run_evaluation(prepare_evaluation(asked), tmp_path / "asked")


@pytest.mark.parametrize("unknown", [[1], []])
def test_a_tokenizer_without_digits_has_no_pass_keys(unknown: list[int]) -> None:
    class Letters:
        bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": unknown * len(text)}

    with pytest.raises(UnmeasurableError, match=NO_DIGITS):
        PasskeyTask(Letters(), [0.5], 2, 0)


def test_pass_keys_are_left_out_where_the_tokenizer_has_no_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load_tokenizer("demo:gpt2")

    class NoDigits:
        bos_token_id = None

        def __call__(self, text: str, **keywords: Any) -> Any:
            return real("".join(letter for letter in text if not letter.isdigit()), **keywords)

    (tmp_path / "test.txt").write_text("The sea was calm that day. " * 100, encoding="utf-8")
    monkeypatch.setattr(run, "load_tokenizer", lambda _: NoDigits())
    prepared = prepare_evaluation(settings(tmp_path, model="demo:gpt2"))
    loaded: nn.Module = load_model("demo:gpt2")
    monkeypatch.setattr(run, "_load", lambda *_: loaded)
    results = run_evaluation(prepared, tmp_path / "out")
    rows = [row for row in results["lengths"]["rows"] if row["protocol"] != "key-tokens"]
    assert all(row["loss"] is not None for row in rows)
    assert all(NO_DIGITS in row["note"] and row["correct"] is None for row in results["passkey"]["rows"])

"""Records beside a checkpoint: gone when another model is saved there, and refused where they contradict the config."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.measuring import KIND_OF
from hf_posswap.evaluation.run import prepare_evaluation, run_evaluation
from hf_posswap.evaluation.settings import EvaluationSettings
from hf_posswap.hub import HubError, Target, card_of, push_folder
from hf_posswap.loading.entry import mark_healed
from hf_posswap.results.records import MEASUREMENTS, remove_records
from hf_posswap.sources import load_model, load_tokenizer
from tests.hub.server import OWNER, HubServer
from tests.hub.test_card import healing, row, write
from tests.hub.test_card import mark_healed as mark_folder

ALIBI = {"format_version": 1, "name": "alibi", "options": {"form": "causal"}, "native": "learned"}
T5 = {"format_version": 1, "name": "t5", "options": {}, "native": "learned"}
HERE = "out/gpt2-alibi"


def command(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


def test_nothing_is_left_of_what_was_there_before(tmp_path: Path) -> None:
    """A model that was calibrated, healed, measured and compared; then a fresh one is saved in its place."""
    out, book = tmp_path / "out", ["--text", "demo:book/test"]
    small = ["--tokens", "512", "--length", "128"]
    command("calibrate", "demo:gpt2", "--pos-scheme", "t5", *book, *small, "--output-dir", out)
    assert "Calibrated" in str(card_of(out))
    heal = ["--train-file", "demo:book/train", "--steps", "1", "--batch-size", "1", "--length", "64", "--no-calibrate"]
    command("finetune", "--model", "demo:gpt2", "--pos-scheme", "t5", *heal, "--checkpoint-every", "0", "--overwrite",
            "--output-dir", out)  # fmt: skip
    assert not (out / "calibration.json").exists()
    measure = ["--lengths", "64", "--tokens", "64", "--measure", "loss"]
    command("evaluate", out, *book, *measure, "--output-dir", out)
    command("compare", "--model", "demo:gpt2", "--schemes", "alibi", *book, "--lengths", "64", "--tokens", "64",
            "--output-dir", out)  # fmt: skip
    assert "Healed" in str(card_of(out))
    command("swap", "demo:gpt2", "--pos-scheme", "alibi", "--output-dir", out, "--overwrite")
    left = {path.name for path in out.iterdir() if path.suffix in (".json", ".csv", ".png")}
    assert left & {"healing.json", "calibration.json", "lengths.json", "lengths.csv"} == set()
    assert {"swap.json", "compare.json", "compare.csv", "compare.png"} <= left
    card = str(card_of(out))
    for word in ("Healed", "Calibrated", "t5", "finetune"):
        assert word not in card
    assert "The swap took effect" in card
    command("calibrate", "demo:gpt2", "--pos-scheme", "t5", *book, *small, "--output-dir", out, "--overwrite")
    assert not (out / "swap.json").exists()


def test_what_was_measured_of_another_model_stays(tmp_path: Path) -> None:
    for name in MEASUREMENTS:
        (tmp_path / f"{name}.csv").touch()
        write(tmp_path, f"{name}.json", {"model": f"out/{tmp_path.name}" if name == "lengths" else "demo:gpt2"})
    remove_records(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(MEASUREMENTS) - {"lengths"}


def test_every_file_that_evaluate_writes_is_a_record() -> None:
    assert {kind.file for kind in KIND_OF.values()} <= set(MEASUREMENTS)


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("healing.json", healing(), "it states that the model was healed, and the config states that it was not"),
    ("healing.json", healing() | {"pos_scheme": T5}, "it is about scheme {'name': 't5'"),
    ("calibration.json", {"report": {"tokens": 8192}, "pos_scheme": T5}, "it is about scheme {'name': 't5'"),
    ("swap.json", {"pos_scheme": T5}, "it is about scheme {'name': 't5'"),
    ("swap.json", {"description": {"scheme": "t5", "options": {}}}, "it is about scheme {'name': 't5'"),
    ("swap.json", {"pos_scheme": ALIBI | {"options": {"layers": [0]}}}, "'layers': \\[0\\]"),
    ("swap.json", {"pos_scheme": {"format_version": 1, "name": "t6"}}, "its scheme cannot be read"),
    ("lengths.json", {"model": HERE, "pos_scheme": T5}, "it is about scheme {'name': 't5'"),
    ("lengths.json", {"model": HERE, "pos_scheme": ALIBI | {"healed": True}}, "measured on a healed model"),
    ("compare.json", {"model": "demo:llama"}, "it compares schemes in 'demo:llama', and .* made from 'demo:gpt2'"),
    ("compare.json", {"model": "/somewhere/else"}, "it compares schemes in '/somewhere/else'"),
]


@pytest.mark.parametrize(("name", "content", "message"), CONTRADICTIONS)
def test_a_record_that_contradicts_the_config_is_an_error(
    client: HubServer, swapped: Path, name: str, content: dict[str, Any], message: str
) -> None:
    (swapped / name).write_text(json.dumps(content))
    told = f"{name} in '{swapped}' contradicts the config: .*{message}"
    with pytest.raises(HubError, match=told):
        card_of(swapped)
    with pytest.raises(HubError, match="Take it out of the folder"):
        push_folder(swapped, Target(f"{OWNER}/gpt2-alibi"))
    assert client.repositories.get(f"{OWNER}/gpt2-alibi") is None or client.files(f"{OWNER}/gpt2-alibi") == {}


def test_a_measurement_from_before_healing_is_refused_after_it(swapped: Path) -> None:
    write(swapped, "lengths.json", {"model": HERE, "pos_scheme": ALIBI, "rows": [row("alibi", 256, 107.0)]})
    assert "107.00" in str(card_of(swapped))
    mark_folder(swapped)
    with pytest.raises(HubError, match="it was measured before the model was healed"):
        card_of(swapped)


@pytest.mark.parametrize("model", ["demo:gpt2", "folder/demo:gpt2"])
def test_records_that_agree_are_taken(swapped: Path, model: str) -> None:
    write(swapped, "healing.json", healing() | {"pos_scheme": ALIBI})
    write(swapped, "compare.json", {"model": model, "rows": [row("alibi", 256, 107.0)]})
    write(swapped, "lengths.json", {"model": "out/another", "pos_scheme": T5, "rows": [row("t5", 256, 90.0)]})
    card = str(card_of(swapped))
    assert "107.00" in card
    assert "90.00" not in card


def evaluated(model: Path, **changes: Any) -> set[str]:
    given = EvaluationSettings(
        model=str(model), texts=("demo:book/test",), lengths=(64,), tokens=64, measurements=("loss",), **changes
    )
    results = run_evaluation(prepare_evaluation(given), model / "measured", overwrite=True)
    return {row["stage"] for row in results["lengths"]["rows"]}


def test_a_measurement_is_named_by_what_was_done_to_the_model(tmp_path: Path) -> None:
    model = hf_posswap.swap(load_model("demo:gpt2"), "alibi")
    load_tokenizer("demo:gpt2").save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert evaluated(tmp_path) == {"swapped"}
    for kept_start, stage in ((True, "swapped"), (False, "calibrated")):
        record = {"kind": "calibration", "report": {"kept_start": kept_start}, "refinement": None}
        (tmp_path / "calibration.json").write_text(json.dumps(record))
        assert evaluated(tmp_path) == {stage}
    assert evaluated(tmp_path, stage="swapped") == {"swapped"}
    mark_healed(model.config)
    model.save_pretrained(tmp_path)
    assert evaluated(tmp_path) == {"healed"}
    with pytest.raises(EvaluationError, match="stage 'swapped' is not that of .*its config says that it was healed"):
        evaluated(tmp_path, stage="swapped")
    command("bias", tmp_path, "--longest", "4", "--output-dir", tmp_path / "bias")
    rows = json.loads((tmp_path / "bias" / "biases.json").read_text())["rows"]
    assert {row["stage"] for row in rows} == {"healed"}

"""Encoders in a comparison: masked loss, or agreement with the stock model's embeddings, through every stage."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.errors import PosSwapError
from hf_posswap.evaluation.masked import masked_loss_rows
from hf_posswap.experiments.comparison import run
from hf_posswap.experiments.preparation import prepare
from hf_posswap.experiments.settings import ComparisonSettings, recipe
from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.results.groups import read_results
from tests import proteins
from tests.experiments.helpers import Recorder, statuses

SCHEMES = ("relative_bias", "alibi")
pytestmark = pytest.mark.filterwarnings("ignore::hf_posswap.calibration.CalibrationWarning")


def settings(folder: Path, **changes: Any) -> ComparisonSettings:
    given: dict[str, Any] = {
        "model": str(folder / "model"),
        "schemes": SCHEMES,
        "texts": (str(folder / "test.txt"),),
        "train_texts": (str(folder / "train.txt"),),
        "documents": "lines",
        "lengths": (16, 64, 71),
        "tokens": 400,
        "calibrate": True,
        "calibration_tokens": 512,
        "healing": recipe(1500, length=32, batch_size=8, precision="no"),
    }
    return ComparisonSettings(**given | changes)


@pytest.mark.parametrize("head", [True, False])
def test_every_stage_is_measured_and_drawn(head: bool, tmp_path: Path) -> None:
    proteins.write(tmp_path, head)
    folder = tmp_path / "out"
    folder.mkdir()
    recorder = Recorder()
    prepared = prepare(settings(tmp_path, control=head))
    result = run(prepared, recorder, folder)
    stages = ["swapped", "calibrated", "healed"]
    control = [("stock", "control", 0)] if head else []
    measured = {("stock", "stock", 0), *control, *(("relative_bias", stage, 0) for stage in stages)}
    measured |= {("alibi", "swapped", 0), ("alibi", "healed", 0)}
    assert {cell for cell, status in statuses(result).items() if status == "measured"} == measured
    assert statuses(result)["alibi", "calibrated", 0] == "absent"
    assert {row["protocol"] for row in result["rows"]} == {"masked" if head else "agreement"}
    assert all(math.isfinite(row["loss"]) and row["windows"] > 1 for row in result["rows"])
    if not head:
        assert all(row["loss"] == pytest.approx(0, abs=1e-6) for row in result["rows"] if row["scheme"] == "stock")
        assert all(row["perplexity"] is None for row in result["rows"])
        assert min(row["loss"] for row in result["rows"] if row["scheme"] != "stock") > 1e-4
    ((_, figures),) = all_figures(read_results(folder))
    assert [figure.name.split("-")[0] for figure in figures] == ["stages", *["length"] * 3]
    panel = figures[0].panels[0]
    assert (panel.y.title, panel.y.scale) == (("perplexity", "log") if head else ("cosine", "linear"))
    assert run(prepare(settings(tmp_path, control=head)), Recorder(), folder)["rows"] == result["rows"]


def test_the_masked_loss_is_the_one_that_evaluation_measures(tmp_path: Path) -> None:
    folder = proteins.write(tmp_path)
    prepared = prepare(settings(tmp_path, calibrate=False, healing=None, train_texts=()))
    rows = [row for row in run(prepared)["rows"] if row["scheme"] == "alibi"]
    model = hf_posswap.AutoModelForMaskedLM.from_pretrained(folder, pos_scheme="alibi")
    documents = [ids for text in prepared.texts for ids in text.ids]
    expected = masked_loss_rows(model, proteins.tokenizer(), documents, (16, 64, 71), budget=400)
    assert [row["loss"] for row in rows] == pytest.approx([row.loss for row in expected], abs=1e-6)


def test_the_agreement_is_the_cosine_of_whole_documents(tmp_path: Path) -> None:
    folder = proteins.write(tmp_path, head=False)
    prepared = prepare(settings(tmp_path, calibrate=False, healing=None, train_texts=(), tokens=10_000))
    (row,) = [row for row in run(prepared)["rows"] if (row["scheme"], row["length"]) == ("alibi", 71)]
    stock = hf_posswap.AutoModel.from_pretrained(folder)
    model = hf_posswap.AutoModel.from_pretrained(folder, pos_scheme="alibi")
    cosines, tokenizer = [], proteins.tokenizer()
    for line in (tmp_path / "test.txt").read_text().split():
        ids = torch.tensor([[tokenizer.cls_token_id, *tokenizer(line)["input_ids"], tokenizer.sep_token_id]])
        with torch.no_grad():
            pooled = [m(input_ids=ids).last_hidden_state.mean(1) for m in (model, stock)]
        cosines.append(float(F.cosine_similarity(*pooled)))
    assert row["windows"] == len(cosines)
    assert 1 - row["loss"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


def test_a_control_of_an_embedding_model_is_refused(tmp_path: Path) -> None:
    proteins.write(tmp_path, head=False)
    with pytest.raises(PosSwapError, match="a control says nothing for .*which embeds texts"):
        prepare(settings(tmp_path, control=True))


@pytest.mark.parametrize("head", [True, False])
def test_the_command_prints_what_it_measured_and_on_which_documents(head: bool, tmp_path: Path) -> None:
    model = proteins.write(tmp_path, head)
    command = ["compare", "--model", str(model), "--schemes", "alibi", "--text", str(tmp_path / "test.txt")]
    command += ["--lengths", "32,64", "--tokens", "256", "--output-dir", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--documents", "lines"])
    assert result.exit_code == 0, result.output
    assert "Measuring on 30 documents of 4" in result.stderr
    assert "warning" not in result.stderr
    assert ("Masked-token perplexity" if head else "Mean cosine of text embeddings") in result.stdout
    saved = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert saved["texts"][0]["documents"] == 30
    glued = CliRunner().invoke(app, [*command, "--overwrite"])
    assert "hf-posswap: warning: 'test.txt' has 30 lines" in glued.stderr
    assert "Measuring on 1 document of" in glued.stderr

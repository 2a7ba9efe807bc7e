"""`hf-posswap calibrate` on real weights, and its refusals."""

import json
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner, Result

import hf_posswap
from hf_posswap.calibration import CalibrationReport
from hf_posswap.commands import app
from hf_posswap.commands.calibrate import _print_report, read_batches
from hf_posswap.hub import card_of
from hf_posswap.sources import load_tokenizer
from hf_posswap.texts.files import read_files


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["calibrate", *arguments])


def test_calibrated_checkpoint(tmp_path: Path) -> None:
    what = ["demo:gpt2", "--pos-scheme", "relative_bias", "--text", "demo:book/train"]
    result = run(*what, "--tokens", "1024", "--length", "256", "--output-dir", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    report, _ = json.JSONDecoder().raw_decode(result.stdout)
    assert report["tokens"] == 1024
    first, *lines = result.stderr.splitlines()
    assert first == "Calibrating on 5 documents of 256 to 256 tokens (half of them 256 or fewer)."
    assert all(line.startswith("calibrating: layer") for line in lines), result.stderr
    assert (report["held_back"], report["kept_start"]) == (256, False)
    assert report["loss_stock"] < report["loss_after"] < report["loss_before"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert hf_posswap.is_swapped(loaded)
    assert loaded.transformer.h[0].attn.pos_scheme.table.abs().sum() > 0
    assert (tmp_path / "out" / "tokenizer.json").exists()
    record = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert (record["kind"], record["model"], record["texts"][0]["name"]) == ("calibration", "demo:gpt2", "jos-boys.txt")
    assert record["report"] == {key: value for key, value in report.items() if key != "refinement"}
    assert f"calibrated {report['loss_after']:.3f}" in str(card_of(tmp_path / "out"))


def test_a_model_that_could_not_run_before_has_no_row_before(capsys: pytest.CaptureFixture[str]) -> None:
    losses = {"loss_stock": 1.0, "loss_before": None, "loss_after": 1.5}
    _print_report(
        CalibrationReport(tokens=8, quantity="loss", held_back=0, kept_start=False, explained=[[0.5]], **losses)
    )
    printed = capsys.readouterr().out
    assert "+0.500" in printed
    assert "calibrated" in printed
    assert "swapped" not in printed


@pytest.mark.parametrize(
    ("scheme", "text", "extra", "message"),
    [
        ("alibi", "demo:book/train", [], "has no parameters that calibration can fit"),
        ("t5", "short.txt", [], "tokens; calibration reads 256 at once"),
        ("t5", "missing.txt", [], "missing.txt"),
        ("t5x", "demo:book/train", [], "Did you mean 't5'"),
        ("t5", "demo:book/train", ["--dtype", "int8"], "unknown value of dtype: 'int8'"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, text: str, extra: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("A short text.")
    result = run(
        "demo:gpt2", "--pos-scheme", scheme, "--text", text, "--tokens", "512", "--output-dir", "out", *extra
    )  # fmt: skip
    assert result.exit_code == 2
    assert message in result.output
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("texts", "tokens", "shapes"),
    [
        (["demo:book/train"], 64, [(1, 64)]),
        (["demo:book/train"], 600, [(1, 256)] * 2),
        (["demo:books"], 3 * 256, [(1, 256)] * 3),
        (["demo:books/train"], 4 * 256, [(1, 256)] * 4),
    ],
)
def test_no_more_is_read_than_was_asked_for(texts: list[str], tokens: int, shapes: list[tuple[int, int]]) -> None:
    batches = read_batches(load_tokenizer("demo:gpt2"), read_files(texts), tokens, 256)
    assert [tuple(batch.shape) for batch in batches] == shapes
    assert len({tuple(batch[0].tolist()) for batch in batches}) == len(shapes)

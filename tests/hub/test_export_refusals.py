"""What native export refuses: the reason, the way out, and nothing left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from hf_posswap.commands import app
from hf_posswap.errors import NotSwappedError, UnsupportedError
from hf_posswap.export import ExportError, export_native
from hf_posswap.ramp import set_ramp
from hf_posswap.results.files import OutputError
from tests.hub.test_export import swapped
from tests.matrix.cells import small_model

REFUSED = {
    ("gpt2", "alibi"): "no stock model of a supported family has ALiBi",
    ("gpt2", "rope"): "no stock 'gpt2' has RoPE",
    ("gpt2", "none:recalibration=0.5"): "recalibration=0 could be exported",
    ("llama", "sinusoidal"): "no stock 'llama' has a vector per position",
    ("llama", "learned:keep_native=true"): "no stock 'llama' has a vector per position",
    ("llama", "rope:interleaved=true"): "interleaved=False could be exported",
    ("llama", "rope:partial_rotary_factor=0.5"): "scaling='proportional'",
    ("llama", "rope:linear:layers=0"): "one RoPE for all layers",
    ("llama", "rope:keep_native=true"): "turns q and k twice",
    ("bert", "t5"): "no stock model of a supported family has",
}


@pytest.mark.parametrize("case", REFUSED, ids="-".join)
def test_schemes(case: tuple[str, str], tmp_path: Path) -> None:
    architecture, scheme = case
    could = "none, rope" if architecture == "llama" else "learned, none, sinusoidal"
    with pytest.raises(UnsupportedError, match=REFUSED[case]) as caught:
        export_native(swapped(architecture, scheme), tmp_path / "out")
    assert f"Of {architecture!r} these can be exported: {could}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_lengths(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="has positions for 48 tokens only. Take max_length <= 48"):
        export_native(swapped("gpt2", "learned:length=48"), tmp_path / "out", 49)
    with pytest.raises(UnsupportedError, match="max_length is 0"):
        export_native(swapped("gpt2", "sinusoidal"), tmp_path / "out", 0)
    with pytest.raises(UnsupportedError, match="has to be 32, not 64"):
        export_native(swapped("llama", "rope:dynamic"), tmp_path / "out", 64)
    assert list(tmp_path.iterdir()) == []


def test_models(tmp_path: Path) -> None:
    with pytest.raises(NotSwappedError, match="save_pretrained writes it"):
        export_native(small_model("gpt2", True), tmp_path / "out")
    adapted = get_peft_model(swapped("gpt2", "sinusoidal"), LoraConfig(r=2, target_modules=["c_attn"]))
    with pytest.raises(UnsupportedError, match="merge_and_unload"):
        export_native(adapted, tmp_path / "out")
    ramped = swapped("gpt2", "sinusoidal")
    set_ramp(ramped, 0.5)
    with pytest.raises(UnsupportedError, match="End it"):
        export_native(ramped, tmp_path / "out")
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(swapped("gpt2", "none").config)
    with pytest.raises(UnsupportedError, match="not in memory"):
        export_native(empty, tmp_path / "out")
    strange = swapped("gpt2", "sinusoidal")
    strange.transformer.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedError, match=r"does not have: \['transformer.extra.bias'"):
        export_native(strange, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_comes_out_different_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = swapped("llama", "rope:linear:factor=2")
    scheme = type(model.base_model.pos_scheme)
    as_stock = scheme.as_stock

    def wrong(self: Any) -> Any:
        form = as_stock(self)
        form.options["factor"] = 3.0
        return form

    monkeypatch.setattr(scheme, "as_stock", wrong)
    with pytest.raises(ExportError, match="computes something else"):
        export_native(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").write_text("older")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not empty"):
        export_native(swapped("gpt2", "none"), tmp_path / "full")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="cannot write"):
            export_native(swapped("gpt2", "none"), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_line(tmp_path: Path) -> None:
    source, out = str(tmp_path / "swapped"), str(tmp_path / "stock")
    assert run("swap", "demo:gpt2", "--pos-scheme", "sinusoidal", "--output-dir", source).exit_code == 0
    done = run("export", source, out, "--max-length", "600", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["model"], report["max_length"], report["scheme"]) == ("GPT2LMHeadModel", 600, "sinusoidal")
    assert transformers.AutoTokenizer.from_pretrained(out).model_max_length == 600
    assert type(transformers.AutoModelForCausalLM.from_pretrained(out)) is transformers.GPT2LMHeadModel
    for arguments, words in (
        ((source, out), "not empty"),
        (("demo:gpt2", str(tmp_path / "x")), "stock GPT2LMHeadModel"),
        ((str(tmp_path / "nowhere"), str(tmp_path / "x")), "cannot load model"),
        ((source, str(tmp_path / "x"), "--max-length", "0"), "greater than or equal to 1"),
    ):
        wrong = run("export", *arguments)
        assert wrong.exit_code == 2
        assert words in wrong.output

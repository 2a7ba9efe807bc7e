"""A tokenizer's `model_max_length` follows the scheme, survives saving, and comes back with the stock mechanism."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.sources import load_tokenizer
from hf_posswap.swapped.tokenizers import fit_tokenizer
from tests.matrix.cells import small_model

NO_LIMIT = int(1e30)
LIMITS = [
    ("alibi", NO_LIMIT),
    ("t5", NO_LIMIT),
    ("sinusoidal", NO_LIMIT),
    ("learned:length=300", 300),
    ("learned", None),
    ("rope", None),
    ("rope:yarn:factor=3", 3),
    ("rope:linear:factor=2", 2),
]


@pytest.fixture
def tokenizer() -> Any:
    return load_tokenizer("demo:gpt2")


@pytest.mark.parametrize(("name", "causal"), [("gpt2", True), ("llama", True)])
@pytest.mark.parametrize(("scheme", "limit"), LIMITS)
def test_the_limit_follows_and_comes_back(
    tokenizer: Any, name: str, causal: bool, scheme: str, limit: int | None, tmp_path: Path
) -> None:
    model = small_model(name, causal)
    stock, trained = tokenizer.model_max_length, model.config.max_position_embeddings
    hf_posswap.swap(model, scheme)
    expected = stock if limit is None else limit * trained if limit < 10 else limit
    assert fit_tokenizer(tokenizer, model) is tokenizer
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == expected
    hf_posswap.swap(model, "alibi", replace=True)
    assert fit_tokenizer(again, model).model_max_length == NO_LIMIT
    hf_posswap.restore(model)
    fit_tokenizer(again, model).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == stock
    assert "stock_model_max_length" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_long_texts_pass_where_they_were_cut(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    text = "word " * 3000
    assert len(tokenizer(text, truncation=True)["input_ids"]) == 256
    fit_tokenizer(tokenizer, hf_posswap.swap(small_model("gpt2", True), "alibi"))
    assert len(tokenizer(text, truncation=True)["input_ids"]) > 3000
    assert "longer than the specified maximum" not in caplog.text


@pytest.mark.parametrize("lora", [[], ["--lora-rank", "2"]], ids=["weights", "adapter"])
def test_healed_models_and_their_controls_get_theirs(lora: list[str], tmp_path: Path) -> None:
    arguments = ["finetune", "--model", "demo:gpt2", "--pos-scheme", "t5", "--train-file", "demo:book/train", "--steps"]
    arguments += [
        "1",
        "--batch-size",
        "1",
        "--length",
        "32",
        "--no-calibrate",
        "--control",
        "--output-dir",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, [*arguments, *lora, "--output-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == NO_LIMIT
    assert AutoTokenizer.from_pretrained(tmp_path / "control").model_max_length == 256

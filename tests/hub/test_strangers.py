"""Checkpoints of families without a file of their own, by the README's commands: from inspection to the Hub."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.texts.sources import resolve_texts
from tests.families.configs import tiny_model
from tests.hub.conftest import Run
from tests.hub.server import OWNER, HubServer

pytestmark = pytest.mark.slow

STRANGERS = [("roberta", False), ("qwen3", True), ("gemma3_text", True), ("gpt_neox", True)]
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In RoBERTa's order, whose padding token stands at index 1."""
SCHEME = "t5:per_layer=true"


def save_tokenizer(folder: Path, vocabulary: int, limit: int, causal: bool) -> None:
    """Save a tokenizer of the commonest words of a book."""
    text = resolve_texts("demo:book/train")[0].path.read_text(encoding="utf-8")
    words = sorted(set(text[:20_000].split()))[: vocabulary - len(SPECIAL)]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: dict[str, str] = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    if not causal:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        names |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit, **names)
    whole.save_pretrained(folder)


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{arguments}: {result.output}"
    return result.output


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """An excerpt to learn from, and to measure on."""
    path = tmp_path / "book.txt"
    path.write_text(resolve_texts("demo:book/train")[0].path.read_text(encoding="utf-8")[:30_000], encoding="utf-8")
    return path


@pytest.mark.parametrize(("model_type", "causal"), STRANGERS, ids=[name for name, _ in STRANGERS])
def test_from_inspection_to_the_hub(
    model_type: str, causal: bool, tmp_path: Path, book: Path, run: Run, client: HubServer
) -> None:
    stock, swapped, fitted, healed = (tmp_path / name for name in ("stock", "swapped", "fitted", "healed"))
    model = tiny_model(model_type, causal, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    for weight in model.parameters():
        weight.data *= 0.05 if weight.dim() > 1 else 1.0  # so that it guesses: of a worse one, nothing is learned
    model.save_pretrained(stock)
    limit = hf_posswap.train_length(model)
    save_tokenizer(stock, model.config.vocab_size, limit, causal)

    found = json.loads(invoke("inspect", stock, "--json"))
    assert found["mechanism"]
    assert hf_posswap.describe(model).scheme is None
    invoke("swap", stock, "--pos-scheme", SCHEME, "--output-dir", swapped)
    assert "stock bit for bit while nothing acts" in invoke("describe", stock, "--pos-scheme", SCHEME)
    invoke("calibrate", stock, "--pos-scheme", SCHEME, "--text", book, "--tokens", "256", "--length", "32",
           "--output-dir", fitted)  # fmt: skip
    invoke("finetune", "--model", stock, "--pos-scheme", SCHEME, "--train-file", book, "--tokens", "2000", "--length",
           "32", "--batch-size", "4", "--distill", "--output-dir", healed)  # fmt: skip
    measured = tmp_path / "measured"
    invoke("evaluate", healed, "--text", book, "--lengths", f"32,{2 * limit}", "--tokens", str(4 * limit), "--measure",
           "loss" if causal else "masked", "--output-dir", measured)  # fmt: skip
    rows = json.loads((measured / "lengths.json").read_text())["rows"]
    assert {row["length"] for row in rows if row["loss"] is not None} == {32, 2 * limit}

    invoke("push", healed, f"{OWNER}/{model_type}-t5")
    names = [str(healed), f"{OWNER}/{model_type}-t5"]
    read = run("-c", READ.format(names=names, auto=auto_class(causal), length=limit + 8, causal=causal))
    assert read.returncode == 0, read.stderr
    local, from_hub = read.stdout.splitlines()
    assert torch.tensor(json.loads(local)).isfinite().all()
    assert from_hub == local


def auto_class(causal: bool) -> str:
    return "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"


READ = """
import json, torch, transformers
import hf_posswap
for name in {names}:
    model = transformers.{auto}.from_pretrained(name).eval()
    tokens = torch.arange({length})[None] % 50 + 5
    if {causal}:
        made = model.generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert made.shape[1] == {length} + 4
        tokens = made
    with torch.no_grad():
        print(json.dumps(model(tokens).logits[0, -1].tolist()))
"""
"""A process that loads models by plain transformers and reads, or writes, past the old limit."""

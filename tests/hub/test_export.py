"""Native export: the folder is loaded where hf_posswap cannot be imported, and gives the swapped model's outputs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.export import export_native
from hf_posswap.sources import load_model, load_tokenizer
from tests.matrix.cells import TRAIN_LENGTH, class_of, random_tokens, randomise, small_config, small_model
from tests.test_auto import python

RUN_STOCK = """
import json, sys, torch, transformers
torch.set_num_threads(1)
cases = json.loads(sys.stdin.read())
out = {}
for folder, case in cases.items():
    model = getattr(transformers, case["auto"]).from_pretrained(folder, dtype="auto").eval()
    ids = torch.tensor(case["tokens"])
    positions = torch.tensor(case["positions"])
    with torch.no_grad():
        hidden = model.base_model(ids, position_ids=positions)[0]
    out[folder] = {"model": type(model).__name__, "hidden": hidden.double().tolist()}
assert "hf_posswap" not in sys.modules
print(json.dumps(out))
"""
"""Loads each folder by a stock Auto class in a process without hf_posswap and prints the hidden states."""

GPT2, BERT, LLAMA, SMOLLM3 = "GPT2LMHeadModel", "BertForMaskedLM", "LlamaForCausalLM", "SmolLM3ForCausalLM"
LONGROPE = "rope:longrope:factor=2:short_factor=1+1.1+1.2+1.3:long_factor=1+2+3+4"
EXPORTS = {
    ("gpt2", "learned"): (GPT2, TRAIN_LENGTH),
    ("gpt2", "learned:last-row:length=48"): (GPT2, 48),
    ("gpt2", "learned:keep_native=true"): (GPT2, TRAIN_LENGTH),
    ("gpt2", "sinusoidal"): (GPT2, 4 * TRAIN_LENGTH),
    ("gpt2", "sinusoidal:trainable=true:interleaved=false"): (GPT2, 4 * TRAIN_LENGTH),
    ("gpt2", "none"): (GPT2, 4 * TRAIN_LENGTH),
    ("bert", "learned:hierarchical:length=100"): (BERT, 100),
    ("bert", "sinusoidal"): (BERT, 4 * TRAIN_LENGTH),
    ("llama", "rope"): (LLAMA, TRAIN_LENGTH),
    ("llama", "rope:base=50000"): (LLAMA, TRAIN_LENGTH),
    ("llama", "rope:linear:factor=2"): (LLAMA, 2 * TRAIN_LENGTH),
    ("llama", "rope:ntk:factor=4"): (LLAMA, 4 * TRAIN_LENGTH),
    ("llama", "rope:dynamic:factor=4"): (LLAMA, TRAIN_LENGTH),
    ("llama", "rope:yarn:factor=4"): (LLAMA, 4 * TRAIN_LENGTH),
    ("llama", "rope:yarn:factor=2:attention_factor=1.1:beta_fast=16:truncate=false"): (LLAMA, 2 * TRAIN_LENGTH),
    ("llama", "rope:llama3:factor=8"): (LLAMA, 8 * TRAIN_LENGTH),
    ("llama", LONGROPE): (LLAMA, 2 * TRAIN_LENGTH),
    ("llama", "rope:proportional:partial_rotary_factor=0.5"): (LLAMA, TRAIN_LENGTH),
    ("llama", "rope:layers=0+2"): (LLAMA, TRAIN_LENGTH),
    ("llama", "none"): (SMOLLM3, TRAIN_LENGTH),
    ("llama", "none:layers=1+2"): (SMOLLM3, TRAIN_LENGTH),
}
"""What can be exported: the stock model's class and its longest text."""
NATIVE = [("gpt2", "learned"), ("bert", "learned"), ("llama", "rope"), ("llama", "rope:layers=0+2")]


def auto_of(architecture: str) -> str:
    return "AutoModelForMaskedLM" if architecture == "bert" else "AutoModelForCausalLM"


def swapped(architecture: str, scheme: str) -> Any:
    model = hf_posswap.swap(small_model(architecture, architecture != "bert"), scheme).eval()
    if (architecture, scheme) not in NATIVE:
        randomise(model)
    return model


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """Every export: its report, the swapped model's hidden states, and what stock transformers makes of the folder."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    cases = {}
    for index, (architecture, scheme) in enumerate(EXPORTS):
        model = swapped(architecture, scheme)
        folder = tmp_path_factory.mktemp("exports") / str(index)
        report = export_native(model, folder)
        tokens = random_tokens(2, 12)
        # dynamic angles are those of the longest text so far: past the train length, to see them
        end = report.max_length * (2 if "dynamic" in scheme else 1)
        positions = torch.arange(end - 12, end).unsqueeze(0).expand(2, -1)
        with torch.no_grad():
            hidden = model.base_model(tokens, position_ids=positions)[0]
        cases[str(folder)] = {"tokens": tokens.tolist(), "positions": positions.tolist(), "auto": auto_of(architecture)}
        found[architecture, scheme] = {"report": report, "hidden": hidden, "folder": folder, "end": end}
    done = python(RUN_STOCK, without_hf_posswap=True, stdin=json.dumps(cases))
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for entry in found.values():
        entry["stock"] = results[str(entry["folder"])]
    return found


@pytest.mark.slow(seconds=1)  # so that one worker makes all exports
@pytest.mark.parametrize("case", EXPORTS, ids="-".join)
def test_stock_transformers_computes_the_same(case: tuple[str, str], exports: Any) -> None:
    entry = exports[case]
    name, max_length = EXPORTS[case]
    assert (entry["stock"]["model"], entry["report"].max_length) == (name, max_length)
    actual = torch.tensor(entry["stock"]["hidden"], dtype=torch.float64)
    torch.testing.assert_close(actual, entry["hidden"].double(), atol=1e-5, rtol=1e-5)
    stock = json.loads((entry["folder"] / "config.json").read_text())
    assert not {"pos_scheme", "auto_map"} & set(stock)
    assert not list(entry["folder"].glob("*.py"))


@pytest.mark.parametrize("case", [case for case in EXPORTS if case[0] == "llama"], ids="-".join)
def test_what_the_scheme_changes_is_there_to_be_seen(case: tuple[str, str], exports: Any) -> None:
    """At the positions compared above, the old model gives other hidden states, unless the scheme is its own."""
    entry = exports[case]
    positions = torch.arange(entry["end"] - 12, entry["end"])[None]
    with torch.no_grad():
        before = small_model("llama", True).base_model(random_tokens(2, 12), position_ids=positions)[0]
    difference = (before - entry["hidden"]).abs().max()
    assert difference < 1e-5 if case in NATIVE else difference > 1e-3


def test_the_native_scheme_gives_the_stock_checkpoint_back(tmp_path: Path) -> None:
    for architecture, scheme in (("gpt2", "learned"), ("llama", "rope"), ("bert", "learned")):
        export_native(swapped(architecture, scheme), tmp_path / architecture)
        small_model(architecture, architecture != "bert").save_pretrained(tmp_path / f"stock-{architecture}")
        auto = getattr(transformers, auto_of(architecture))
        exported, stock = (auto.from_pretrained(tmp_path / name) for name in (architecture, f"stock-{architecture}"))
        assert type(exported) is type(stock)
        assert exported.config.to_dict() == stock.config.to_dict() | {"_name_or_path": exported.name_or_path}
        weights = stock.state_dict()
        assert exported.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in exported.state_dict().items())


@pytest.mark.parametrize(
    ("max_length", "scheme"), [(7, "sinusoidal"), (40, "learned:length=48"), (500, "none"), (300, "sinusoidal")]
)
def test_max_length_gives_the_rows_of_a_table(max_length: int, scheme: str, tmp_path: Path) -> None:
    assert export_native(swapped("gpt2", scheme), tmp_path / "out", max_length).max_length == max_length
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").n_positions == max_length


def test_an_encoder_reads_its_longer_table_without_positions_or_token_types(tmp_path: Path) -> None:
    """BERT's buffers of positions and token types have to grow with the table."""
    model = swapped("bert", "sinusoidal")
    export_native(model, tmp_path / "out", 200)
    stock = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    tokens = random_tokens(2, 200)
    with torch.no_grad():
        torch.testing.assert_close(stock(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-5)


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = swapped("bert", "sinusoidal").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_native(model, tmp_path / "new" / "folder")
    assert model.training
    assert hf_posswap.is_swapped(model)
    assert model.config.pos_scheme["name"] == "sinusoidal"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "new" / "folder").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "case", [("gpt2", "sinusoidal"), ("llama", "rope:yarn"), ("llama", "none:layers=0")], ids="-".join
)
def test_other_types(case: tuple[str, str], dtype: torch.dtype, tmp_path: Path) -> None:
    report = export_native(swapped(*case).to(dtype), tmp_path / "out")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == dtype
    assert report.typical < (1e-6 if dtype == torch.float64 else 0.05)


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification"])
def test_heads_follow_into_smollm3(name: str, tmp_path: Path) -> None:
    model = hf_posswap.swap(class_of("llama", name)(small_config("llama", True)), "none:layers=1").eval()
    report = export_native(model, tmp_path / "out")
    assert report.model == name.replace("Llama", "SmolLM3")
    loaded, info = getattr(transformers, report.model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    tokens = random_tokens(2, 12)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens)[0], model(tokens)[0])


REAL = {
    "demo:gpt2": ("sinusoidal", 600, 550),
    "demo:bert": ("learned:length=1024", 1024, 550),
    "demo:llama": ("none:layers=3", 8192, 60),
}
"""Scheme, longest text, and tokens to compare."""

RUN_REAL = """
import sys, json, torch, transformers
for folder, tokens in json.loads(sys.stdin.read()).items():
    transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(folder).eval()(torch.tensor([tokens]))[0].double()
    print(json.dumps([float(hidden.abs().sum()), *hidden[0, -1].tolist()]))
"""


@pytest.mark.slow
def test_real_weights(tmp_path: Path) -> None:
    cases, expected = {}, []
    for name, (scheme, max_length, count) in REAL.items():
        model, tokenizer = hf_posswap.swap(load_model(name), scheme), load_tokenizer(name)
        folder = str(tmp_path / name.removeprefix("demo:"))
        assert export_native(model, folder, max_length).max_length == max_length
        tokenizer.save_pretrained(folder)
        cases[folder] = tokenizer("The sea was calm that morning, and no one was on deck. " * 45).input_ids[:count]
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([cases[folder]]))[0].double()
        expected.append(torch.tensor([float(hidden.abs().sum()), *hidden[0, -1].tolist()]))
    done = python(RUN_REAL, without_hf_posswap=True, stdin=json.dumps(cases))
    assert done.returncode == 0, done.stderr[-3000:]
    for line, wanted in zip(done.stdout.splitlines()[-3:], expected, strict=True):
        torch.testing.assert_close(torch.tensor(json.loads(line)), wanted, atol=1e-4, rtol=1e-4)

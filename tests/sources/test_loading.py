"""Models and tokenizers by name."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.errors import SourceError
from hf_posswap.sources import ModelSource, class_for, load_config, load_model, load_tokenizer, resolve_model


def test_demo_gpt2_is_a_real_model_of_256_positions(gpt2_books_path: Path) -> None:
    model = load_model("demo:gpt2")
    assert isinstance(model, GPT2LMHeadModel)
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config.n_positions == 256
    assert (gpt2_books_path / "README.md").is_file()


def test_demo_bert_is_a_real_encoder(minilm_path: Path) -> None:
    model = load_model("demo:bert")
    assert type(model) is BertModel
    assert model.config.max_position_embeddings == 512
    assert minilm_path.name == "model"


@pytest.mark.slow
def test_demo_llama_is_a_real_llama_in_float32(smollm2_source: ModelSource) -> None:
    model = load_model("demo:llama")
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert smollm2_source.from_pretrained_kwargs["gguf_file"].endswith(".gguf")


def test_a_dtype_that_is_asked_for_is_kept() -> None:
    assert load_model("demo:gpt2", dtype="auto").dtype == torch.float16


def test_tokenizers_load() -> None:
    ids = load_tokenizer("demo:gpt2")("It was a dark and stormy night.")["input_ids"]
    assert len(ids) > 5


def test_every_other_name_passes_through() -> None:
    assert resolve_model("gpt2") == ModelSource("gpt2")
    assert resolve_model("some/where") == ModelSource("some/where")


def test_a_gguf_file_is_split_into_folder_and_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert resolve_model(str(file)) == ModelSource(str(tmp_path), {"gguf_file": "model.gguf"})


def test_unknown_demo_model_lists_the_known_ones() -> None:
    with pytest.raises(
        SourceError, match="'demo:gpt3'. Did you mean 'demo:gpt2'[?] Allowed: demo:bert, demo:gpt2, demo:l"
    ):
        resolve_model("demo:gpt3")


@pytest.mark.parametrize("name", ["demo:bert", "demo:llama"])
def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(SourceError, match=rf'{name} needs the package .*pip install "hf_posswap\[demo\]"'):
        resolve_model(name)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder"])
def test_a_model_that_is_not_there_is_a_clear_error(name: str) -> None:
    with pytest.raises(SourceError, match=rf"(?s)cannot load model '{name}'.*or one of demo:gpt2"):
        load_config(name)


def test_a_folder_that_is_no_model_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(SourceError, match="cannot load model"):
        load_model(str(tmp_path))


def test_a_model_without_weights_is_a_clear_error(tmp_path: Path) -> None:
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="cannot load the weights of"):
        load_model(str(tmp_path))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, stock and swapped, in one file, in shards and pickled."""
    root = tmp_path_factory.mktemp("formats")
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=16, vocab_size=64, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "shards", max_shard_size="5KB")
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(root / "pickled")
    torch.save(model.state_dict(), root / "pickled" / "pytorch_model.bin")
    hf_posswap.swap(model, "alibi").save_pretrained(root / "swapped")
    return root


BROKEN: list[tuple[str, str, Callable[[Path], object]]] = [
    *(("whole", "model.safetensors", spoil) for spoil in (cut, empty, Path.unlink)),
    *(("swapped", "model.safetensors", spoil) for spoil in (cut, empty, Path.unlink)),
    *(("shards", "model-00001-of-*.safetensors", spoil) for spoil in (cut, empty, Path.unlink)),
    *(("shards", "model.safetensors.index.json", spoil) for spoil in (cut, empty, replaced("metadata", "x"))),
    *(("pickled", "pytorch_model.bin", spoil) for spoil in (cut, empty, lambda path: path.write_bytes(b"hello" * 9))),
    *(("whole", "config.json", spoil) for spoil in (cut, empty, replaced('"n_embd": 16', '"n_embd": 32'))),
    ("whole", "config.json", replaced('"n_embd": 16', '"n_embd": "16"')),
]


@pytest.mark.parametrize(("kind", "file", "spoil"), BROKEN)
def test_a_model_with_a_broken_file_is_a_clear_error(
    kind: str, file: str, spoil: Callable[[Path], object], formats: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(formats / kind, tmp_path / "model"))
    load_model(str(folder))
    spoil(next(folder.glob(file)))
    with pytest.raises(SourceError, match=rf"cannot load (model|the weights of) '{folder}': \S"):
        load_model(str(folder))


@pytest.mark.parametrize("size", [0, 10, 30, 100, 1_000, 100_000, 3_000_000])
def test_a_cut_gguf_file_is_a_clear_error(size: int, smollm2_source: ModelSource, tmp_path: Path) -> None:
    whole = Path(smollm2_source.path, smollm2_source.from_pretrained_kwargs["gguf_file"])
    file = tmp_path / "cut.gguf"
    with whole.open("rb") as content:
        file.write_bytes(content.read(size))
    for load in (load_config, load_tokenizer, load_model):
        with pytest.raises(SourceError, match="cannot load .*cut.gguf': "):
            load(str(file))


MODEL_COMMANDS = [
    ["describe", "CUT"],
    ["inspect", "CUT"],
    ["swap", "CUT", "--pos-scheme", "alibi", "--output-dir", "OUT"],
    ["calibrate", "CUT", "--pos-scheme", "t5", "--text", "demo:book/test", "--output-dir", "OUT"],
    ["bias", "CUT", "--schemes", "alibi", "--output-dir", "OUT"],
    ["bench", "CUT", "--schemes", "alibi", "--output-dir", "OUT"],
    ["finetune", "--model", "CUT", "--pos-scheme", "t5", "--train-file", "demo:book/test", "--steps", "1",
     "--output-dir", "OUT"],
    ["evaluate", "CUT", "--text", "demo:book/test", "--lengths", "64", "--output-dir", "OUT"],
    ["compare", "--model", "CUT", "--schemes", "t5", "--text", "demo:book/test", "--lengths", "64", "--output-dir",
     "OUT"],
    ["export", "CUT", "OUT"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", MODEL_COMMANDS, ids=lambda arguments: arguments[0])
def test_no_command_ends_in_a_traceback_on_cut_weights(
    arguments: list[str], gpt2_books_path: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(gpt2_books_path, tmp_path / "cut"))
    cut(folder / "model.safetensors")
    places = {"CUT": str(folder), "OUT": str(tmp_path / "out")}
    done = CliRunner().invoke(app, [places.get(word, word) for word in arguments])
    assert done.exit_code == 2, done.output
    assert f"hf-posswap: error: cannot load the weights of '{folder}': " in done.stderr
    assert "get the model again, or save it again" in done.stderr


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("PosSwapGPT2LMHeadModel", "AutoModelForCausalLM"),
        ("TFGPT2LMHeadModel", "AutoModelForCausalLM"),
        ("BertGenerationDecoder", "AutoModelForCausalLM"),
        ("PosSwapLlamaForCausalLM", "AutoModelForCausalLM"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("BertForSequenceClassification", "AutoModelForSequenceClassification"),
        ("BertModel", "AutoModel"),
        ("GPT2DoubleHeadsModel", "GPT2DoubleHeadsModel"),
        (None, "AutoModelForCausalLM"),
    ],
)
def test_the_head_a_configuration_names_is_loaded(architecture: str | None, expected: str) -> None:
    config = LlamaConfig(architectures=[architecture] if architecture else None)
    assert class_for(config).__name__ == expected

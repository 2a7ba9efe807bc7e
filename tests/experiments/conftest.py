"""Small comparisons on real weights, of untrained swaps and of every stage, and small searches on random ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_posswap.experiments.search import run_search
from hf_posswap.experiments.search_preparation import prepare_search
from hf_posswap.experiments.settings import ComparisonSettings, SearchSettings, recipe
from hf_posswap.sources import load_tokenizer
from hf_posswap.texts.sources import resolve_texts
from tests.experiments.helpers import STEP

CHARACTERS = 20_000
"""Of each book; tokenising whole ones would take most of the time."""


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Beginnings of a book to measure on and of one to learn from."""
    folder = tmp_path_factory.mktemp("books")
    paths = {}
    for name in ("test", "train"):
        path: Path = folder / f"{name}.txt"
        path.write_text(resolve_texts(f"demo:book/{name}")[0].read()[:CHARACTERS], encoding="utf-8")
        paths[name] = str(path)
    return paths


@pytest.fixture(scope="session")
def changed(books: dict[str, str]) -> Callable[..., ComparisonSettings]:
    """Untrained swaps, with some settings changed."""
    settings = ComparisonSettings(
        model="demo:gpt2", schemes=("alibi", "t5"), texts=(books["test"],), lengths=(128, 64, 512), tokens=1024
    )
    return lambda **values: dataclasses.replace(settings, **values)


@pytest.fixture(scope="session")
def healed(changed: Callable[..., ComparisonSettings], books: dict[str, str]) -> Callable[..., ComparisonSettings]:
    """Every stage, on few tokens, with some settings changed."""
    settings: dict[str, Any] = {
        "schemes": ("t5:per_layer=true", "alibi"),
        "lengths": (64, 300),
        "tokens": 300,
        "train_texts": (books["train"],),
        "calibrate": True,
        "calibration_tokens": 512,
        "healing": recipe(96, length=16, batch_size=2, precision="no"),
        "control": True,
    }
    return lambda **values: changed(**(settings | values))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model with RoPE and four layers, each of which can keep it."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    tokenizer = load_tokenizer("demo:gpt2")
    size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def search(tiny_llama: str, books: dict[str, str]) -> Callable[..., SearchSettings]:
    """A small search among three schemes, with some settings changed."""
    given: dict[str, Any] = {
        "model": tiny_llama,
        "texts": (books["test"],),
        "train_texts": (books["train"],),
        "length": 64,
        "schemes": ("t5:per_layer=true", "alibi", "none"),
        "calibration_tokens": 128,
        "eval_tokens": 128,
    }

    def make(tokens: int = 6 * STEP, **values: Any) -> SearchSettings:
        healing = recipe(tokens, length=16, batch_size=2, precision="no")
        return SearchSettings(**given | {"healing": healing} | values)

    return make


@pytest.fixture(scope="session")
def searched(search: Callable[..., SearchSettings], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A whole search with mixes: its settings, result and folder."""
    folder = tmp_path_factory.mktemp("search")
    settings = search(tokens=13 * STEP, hybrids=True)
    return settings, run_search(prepare_search(settings), folder=folder), folder

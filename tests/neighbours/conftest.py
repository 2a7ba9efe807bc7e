"""The real small models that the tools around transformers are given, swapped."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap

TEXT = "The sea was calm that morning, and the captain had not yet come on deck when the first mate"


@pytest.fixture(scope="session")
def tokenizer(gpt2_books_path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(gpt2_books_path)


@pytest.fixture(scope="session")
def gpt2_folder(gpt2_books_path: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved GPT-2 with ALiBi in float32, and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("gpt2-alibi"))
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(gpt2_books_path, dtype=torch.float32, pos_scheme="alibi")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved BERT encoder with ALiBi in float32, and its tokenizer, which cuts at 4096 tokens."""
    folder = str(tmp_path_factory.mktemp("bert-alibi"))
    model = hf_posswap.AutoModel.from_pretrained(minilm_path, dtype=torch.float32, pos_scheme="alibi")
    model.save_pretrained(folder)
    bert_tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path)
    bert_tokenizer.model_max_length = 4096
    bert_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: str) -> Any:
    """The GPT-2 with ALiBi, in evaluation mode."""
    return transformers.AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()


@pytest.fixture(scope="module")
def prompt(tokenizer: Any) -> torch.Tensor:
    return tokenizer(TEXT, return_tensors="pt").input_ids

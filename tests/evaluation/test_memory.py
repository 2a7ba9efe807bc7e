"""Measuring 16,384 tokens at once never holds anything as large as length × vocabulary or length × length."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import hf_posswap
from hf_posswap.evaluation.masked import masked_loss_rows
from hf_posswap.evaluation.perplexity import perplexity_rows
from hf_posswap.evaluation.reading import LOGITS_AT_ONCE
from tests.attention.test_memory import LargestStorage
from tests.training.helpers import WordTokenizer

LENGTH, VOCABULARY = 16_384, 12_000


def gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1, n_positions=LENGTH)
    return GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=LENGTH,
    )
    return BertForMaskedLM(config)


def loss(model: nn.Module, ids: torch.Tensor) -> Sequence[Any]:
    return perplexity_rows(model, ids, [LENGTH], ("windows",), budget=LENGTH)


def masked_loss(model: nn.Module, ids: torch.Tensor) -> Sequence[Any]:
    return masked_loss_rows(model, WordTokenizer(bert=True), ids, [LENGTH], budget=LENGTH)


@pytest.mark.parametrize(
    ("make", "measure", "scheme"), [(gpt2, loss, None), (gpt2, loss, "t5"), (bert, masked_loss, None)]
)
def test_the_largest_allocation_is_a_chunk_of_logits(
    make: Callable[[], nn.Module], measure: Callable[..., Sequence[Any]], scheme: str | None
) -> None:
    model = make()
    if scheme is not None:
        hf_posswap.swap(model, scheme)
    ids = torch.randint(5, VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(0))
    with LargestStorage() as record:
        (row,) = measure(model, ids)
    assert row.loss is not None
    chunk = 4 * LOGITS_AT_ONCE
    assert chunk / 2 < record.bytes <= chunk
    assert chunk < 4 * LENGTH * VOCABULARY / 10
    assert chunk < 4 * LENGTH * LENGTH / 10

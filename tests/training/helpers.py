"""Tiny models, a tokenizer of words and texts, for tests of healing."""

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

WORDS = 61
SPECIAL = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "[END]": 4}


def learning(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of healing that learn from the text alone, unless they name what to learn from."""
    named = settings.get("distill") or settings.get("supervise")
    return settings if named else settings | {"supervise": ("labels",), "distill": 0.0}


class WordTokenizer:
    """What healing uses of a transformers tokenizer, over the words "w0" … ; BERT-like or GPT-like."""

    def __init__(self, bert: bool = False, size: int = WORDS, end: bool = True) -> None:
        self.size = size
        self.cls_token_id = SPECIAL["[CLS]"] if bert else None
        self.sep_token_id = SPECIAL["[SEP]"] if bert else None
        self.mask_token_id = SPECIAL["[MASK]"] if bert else None
        self.pad_token_id = SPECIAL["[PAD]"] if bert else None
        self.eos_token_id = SPECIAL["[END]"] if end and not bert else None
        self.all_special_ids = list(SPECIAL.values())

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [5 + int(word[1:]) % (self.size - 5) for word in text.split()]}

    def save_pretrained(self, folder: Any) -> None:
        """Nothing to save."""


def text(words: int, seed: int = 0) -> str:
    """A text with something to learn: ten words, each leaving three that may follow it."""
    generator = torch.Generator().manual_seed(seed)
    values = [1]
    for extra in torch.randint(0, 3, (words,), generator=generator).tolist():
        values.append((values[-1] * 3 + extra) % 10)
    return " ".join(f"w{value}" for value in values[1:])


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    """A causal model with learned positions, without dropout unless asked for."""
    settings = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} | changes
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=32, **settings)
    return GPT2LMHeadModel(config).eval()


def llama() -> LlamaForCausalLM:
    """A causal model with RoPE and grouped queries."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).eval()


def bert(head: bool = False, **changes: Any) -> Any:
    """An encoder, with a masked-token head or without one."""
    settings: dict[str, Any] = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 32,
    } | changes
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        **settings,
    )
    return (BertForMaskedLM(config) if head else BertModel(config, add_pooling_layer=False)).eval()

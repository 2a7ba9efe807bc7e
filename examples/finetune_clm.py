"""Swap the positional scheme of a GPT-2 or Llama, heal it on plain text, and compare its losses with the stock model's.

    python examples/finetune_clm.py
    python examples/finetune_clm.py --pos-scheme t5:per_layer=true --tokens 500000
    accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/finetune_clm.py --model demo:llama

It needs no network: a small GPT-2 and the books are in the repository. The same lines run on one CPU, in several
processes, on one GPU or many, sharded or not: `accelerate launch` decides. The main process alone measures and prints.
"""

import argparse
from pathlib import Path

import torch

from hf_posswap import AutoModelForCausalLM, calibrate, swap, train_length
from hf_posswap.calibration import calibration_refusal
from hf_posswap.evaluation.perplexity import perplexity_rows
from hf_posswap.sources import load_config, load_model, load_tokenizer
from hf_posswap.training import HealingOptions, Windows, from_files, heal, make_accelerator


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:gpt2", help="a folder, a Hub name, demo:gpt2 or demo:llama")
    parser.add_argument("--pos-scheme", default="alibi:trainable=true:per_layer=true")
    parser.add_argument("--train-file", nargs="+", default=["demo:books/train"], help="UTF-8 texts to heal on")
    parser.add_argument("--eval-file", nargs="+", default=["demo:book/test"], help="UTF-8 texts to measure on")
    parser.add_argument("--tokens", type=int, default=112_000, help="tokens to heal on, all processes together")
    parser.add_argument("--length", type=int, help="tokens read at once; default: the train length, at most 512")
    parser.add_argument("--batch-size", type=int, default=16, help="windows that a process reads at once")
    parser.add_argument("--eval-tokens", type=int, default=8192, help="tokens to measure on at each length")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/finetune-clm"))
    return parser.parse_args()


def main() -> None:
    """Measure the stock model, swap, calibrate, heal, and measure after each."""
    arguments = parse()
    length = arguments.length or min(load_config(arguments.model).max_position_embeddings, 512)
    lengths = [length, 2 * length, 4 * length]
    options = HealingOptions(
        tokens=arguments.tokens,
        length=length,
        batch_size=arguments.batch_size,
        # The target is the stock model's distribution, not the one next word of the text: it says more for each token,
        # and the model does not drift to the style of the text.
        distill=1.0,
        learning_rate=1e-3,
        scheme_learning_rate=2e-2,
        checkpoint_every=0,
    )
    accelerator = make_accelerator(options)  # before anything is loaded: it joins the processes

    tokenizer = load_tokenizer(arguments.model)
    documents, _ = from_files(arguments.train_file)
    texts = [torch.tensor(tokenizer(text, verbose=False)["input_ids"]) for text in from_files(arguments.eval_file)[0]]
    model = load_model(arguments.model, auto_class=AutoModelForCausalLM).to(accelerator.device)

    def show(name: str, model: torch.nn.Module) -> None:
        if accelerator.is_main_process:
            # The last tokens of each window are scored at every length, so that only the context before them grows.
            rows = perplexity_rows(model, texts, lengths, ("same-targets",), budget=arguments.eval_tokens)
            cells = ["-" if row.loss is None else f"{row.loss:.3f}" for row in rows]
            print(f"{name:<12}" + "".join(f"{cell:>8}" for cell in cells), flush=True)

    accelerator.print(f"{arguments.model} with {arguments.pos_scheme}: loss in nats a token, by context length")
    accelerator.print(f"{'model':<12}" + "".join(f"{length:>8}" for length in lengths))
    show("stock", model)

    swap(model, arguments.pos_scheme)
    show("swapped", model)

    if calibration_refusal(model) is None:  # none, a fixed alibi and others have nothing that could be fitted
        readable = min(length, train_length(model))  # it compares with stock attention
        calibrate(model, Windows(documents, tokenizer, readable, packing=False).spread(36))
        show("calibrated", model)

    report = heal(model, documents, tokenizer, options, output_dir=arguments.output_dir, accelerator=accelerator)
    if accelerator.is_main_process:
        # What was saved is measured: in memory the model may be in shards on several GPUs.
        healed = AutoModelForCausalLM.from_pretrained(arguments.output_dir)
        show("healed", healed.to(accelerator.device))
        print(f"healed on {report.tokens:,} tokens and saved to {arguments.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    main()

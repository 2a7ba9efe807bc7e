"""Train a swapped model with transformers' own Trainer: it is an ordinary model, so nothing has to be said to Trainer.

    python examples/finetune_with_trainer.py
    accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/finetune_with_trainer.py

It needs no network. There is no teacher here, only the loss on the text: see finetune_clm.py for healing.
"""

import argparse
import itertools
from pathlib import Path

import torch
import transformers

import hf_posswap
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.training import Windows, from_files


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:gpt2", help="a folder, a Hub name, demo:gpt2 or demo:llama")
    parser.add_argument("--pos-scheme", default="alibi")
    parser.add_argument("--train-file", nargs="+", default=["demo:books/train"], help="UTF-8 texts to train on")
    parser.add_argument("--eval-file", nargs="+", default=["demo:book/test"], help="UTF-8 texts to measure on")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens to train on")
    parser.add_argument("--length", type=int, default=256, help="tokens read at once")
    parser.add_argument("--batch-size", type=int, default=16, help="windows that a process reads at once")
    parser.add_argument("--eval-tokens", type=int, default=8192, help="tokens to measure on at each length")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/finetune-with-trainer"))
    return parser.parse_args()


def main() -> None:
    """Swap, train, save, and load again with a stock Auto class."""
    arguments = parse()
    tokenizer = load_tokenizer(arguments.model)
    model = load_model(arguments.model, auto_class=hf_posswap.AutoModelForCausalLM, pos_scheme=arguments.pos_scheme)

    def rows(names: list[str], length: int, tokens: int) -> list[dict[str, torch.Tensor]]:
        windows = Windows(from_files(names)[0], tokenizer, length, packing=True).whole()
        return [{"input_ids": ids[0], "labels": ids[0]} for ids in itertools.islice(windows, max(1, tokens // length))]

    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(arguments.output_dir),
            num_train_epochs=1,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=4,
            learning_rate=1e-3,
            warmup_steps=2,
            lr_scheduler_type="cosine",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),  # or processes without a GPU would not find each other
        ),
        train_dataset=rows(arguments.train_file, arguments.length, arguments.tokens),
        data_collator=transformers.default_data_collator,
        processing_class=tokenizer,
    )
    lengths = [arguments.length, 2 * arguments.length, 4 * arguments.length]
    texts = {str(length): rows(arguments.eval_file, length, arguments.eval_tokens) for length in lengths}

    def show(name: str) -> None:
        cells = [f"{trainer.evaluate(rows)['eval_loss']:.3f}" for rows in texts.values()]
        if trainer.is_world_process_zero():
            print(f"{name:<12}" + "".join(f"{cell:>8}" for cell in cells), flush=True)

    if trainer.is_world_process_zero():
        print(f"{type(model).__name__} with {arguments.pos_scheme}: loss in nats a token, by tokens read at once")
        print(f"{'model':<12}" + "".join(f"{length:>8}" for length in texts))
    show("swapped")
    trainer.train()
    show("trained")
    trainer.save_model()

    if trainer.is_world_process_zero():
        loaded = transformers.AutoModelForCausalLM.from_pretrained(arguments.output_dir).to(model.device).eval()
        ids = texts[str(lengths[-1])][0]["input_ids"][None].to(model.device)
        with torch.no_grad():
            same = torch.equal(loaded(ids).logits, model.eval()(ids).logits)
        print(f"saved to {arguments.output_dir}, loaded as {type(loaded).__name__}, equal logits: {same}")


if __name__ == "__main__":
    main()

"""Measure how far a RoPE model reads without training, by scheme: loss of the same target tokens, and processor time.

The model may have been healed to scheme rope, which `hf-posswap compare` does not take; each scheme then replaces rope
with the healed weights unchanged. Every result is added to a CSV file at once, and those already in it are not computed
again. Prints a Markdown table at the end: the loss in nats a token, and the time as a ratio to rope at that length.
A scheme that cannot run before calibration, such as rope:frequencies=chosen, is calibrated first.
"""

import argparse
import csv
import time
from pathlib import Path

import torch

import hf_posswap
from hf_posswap.calibration import calibrate
from hf_posswap.evaluation.perplexity import measure_length, plan_texts
from hf_posswap.evaluation.reading import Reader
from hf_posswap.evaluation.texts import as_texts
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.swapped.questions import is_swapped, unfitted_reason
from hf_posswap.texts.sources import resolve_texts

REFERENCE = "rope"
SCHEMES = (
    REFERENCE, "rope:linear", "rope:ntk", "rope:dynamic", "rope:yarn", "self_extend", "rerope", "rerope:leak=16",
    "dual_chunk",
)  # fmt: skip
WINDOW = 512
"""Length of the texts to calibrate on."""
COLUMNS = ("model", "text", "tokens", "scheme", "length", "targets", "loss", "seconds")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the results measured so far."""
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def add_row(path: Path, row: dict[str, str]) -> None:
    """Add one result to the file."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def print_table(rows: list[dict[str, str]]) -> None:
    """Print a row for each scheme and a column for each length."""
    found = {(row["scheme"], int(row["length"])): row for row in rows}
    lengths = sorted({length for _, length in found})
    print("| scheme | " + " | ".join(map(str, lengths)) + " |\n" + "| --- " * (len(lengths) + 1) + "|")
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        cells = []
        for length in lengths:
            row, reference = found.get((scheme, length)), found.get((REFERENCE, length))
            ratio = f"; {float(row['seconds']) / float(reference['seconds']):.2f}" if row and reference else ""
            cells.append(f"{float(row['loss']):.3f}{ratio}" if row else "")
        print(f"| `{scheme}` | " + " | ".join(cells) + " |")


def main() -> None:
    """Measure what the file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a RoPE model, or one that was healed to rope")
    parser.add_argument("--name", help="name of the model in the file; default: the model")
    parser.add_argument("--text", default="demo:books", help="texts to measure on")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to read at the longest length")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--calibration-text", default="demo:book/train", help="text to calibrate on, from its start")
    parser.add_argument("--calibration-tokens", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("outputs/training-free.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = arguments.name or arguments.model
    key = {"model": name, "text": arguments.text, "tokens": str(arguments.tokens)}
    tokenizer, model = load_tokenizer(arguments.model), load_model(arguments.model)
    texts = [tokenizer(source.read()).input_ids for source in resolve_texts(arguments.text)]
    plans = plan_texts("same-targets", as_texts(texts), arguments.lengths, arguments.tokens)
    for scheme in arguments.schemes:
        done = read_rows(arguments.output)
        known = {int(row["length"]) for row in done if (key | {"scheme": scheme}).items() <= row.items()}
        missing = [length for length in plans if length not in known]
        if not missing:
            continue
        hf_posswap.swap(model, scheme, replace=is_swapped(model))
        if unfitted_reason(model) is not None:
            source = resolve_texts(arguments.calibration_text)[0]
            tokens = torch.tensor(tokenizer(source.read()).input_ids[: arguments.calibration_tokens])
            calibrate(model, tokens.view(-1, WINDOW).split(1), measure=False)
        with Reader(model) as reader:
            for length in missing:
                started = time.process_time()
                found = measure_length(reader, "same-targets", length, plans[length], seed=0)
                seconds = f"{time.process_time() - started:.2f}"
                loss = f"{found.loss:.5f}"
                measured = {"length": str(length), "targets": str(found.tokens), "loss": loss, "seconds": seconds}
                add_row(arguments.output, key | {"scheme": scheme} | measured)
                print(f"{scheme} at {length}: {loss} nats in {seconds} s", flush=True)
    print_table([row for row in read_rows(arguments.output) if key.items() <= row.items()])


if __name__ == "__main__":
    main()

"""Measure how far a RoPE model reads without training, by scheme: loss of the same target tokens, and processor time.

The model may have been healed to scheme rope, which `hf-posswap compare` does not take; each scheme then replaces rope
with the healed weights unchanged. Every result is added to a CSV file at once, and those already in it are not computed
again. Prints a Markdown table at the end: the loss in nats a token, and the time as a ratio to rope at that length.
With --passkeys it reads pass keys in place of a text: the share chosen among ten, and the log-probability of a token.
A scheme that cannot run before calibration, such as rope:frequencies=chosen, is calibrated first.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hf_posswap
from hf_posswap.calibration import calibrate
from hf_posswap.evaluation.passkey_retrieval import passkey_rows
from hf_posswap.evaluation.perplexity import measure_length, plan_texts
from hf_posswap.evaluation.reading import Reader
from hf_posswap.evaluation.texts import as_texts
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.swapped.questions import is_swapped, unfitted_reason
from hf_posswap.texts.sources import resolve_texts

REFERENCE = "rope"
SCHEMES = (
    REFERENCE, "self_extend", "rerope", "rerope:leak=16", "dual_chunk", "rope:yarn", "rope:yarn:factor=16",
    "rope:dynamic", "rope:ntk", "rope:linear", "rope:log_n=true", "rope:yarn:log_n=true",
)  # fmt: skip
WINDOW = 512
"""Length of the texts to calibrate on."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the results measured so far."""
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def add_row(path: Path, row: dict[str, str]) -> None:
    """Add one result to the file."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def print_table(rows: list[dict[str, str]], cell: Callable[[dict[str, str], dict[str, str] | None], str]) -> None:
    """Print a row for each scheme and a column for each length; `cell` gets a result and that of rope, or None."""
    found = {(row["scheme"], int(row["length"])): row for row in rows}
    lengths = sorted({length for _, length in found})
    print("| scheme | " + " | ".join(map(str, lengths)) + " |\n" + "| --- " * (len(lengths) + 1) + "|")
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        given = [(found.get((scheme, length)), found.get((REFERENCE, length))) for length in lengths]
        print(f"| `{scheme}` | " + " | ".join(cell(row, reference) if row else "" for row, reference in given) + " |")


class Losses:
    """The loss of the same target tokens at every length, and the processor time of reading them."""

    def __init__(self, arguments: argparse.Namespace, tokenizer: Any) -> None:
        texts = [tokenizer(source.read()).input_ids for source in resolve_texts(arguments.text)]
        self.plans = plan_texts("same-targets", as_texts(texts), arguments.lengths, arguments.tokens)
        self.key = {"text": arguments.text, "tokens": str(arguments.tokens)}
        self.lengths = list(self.plans)

    def measure(self, model: Any, length: int) -> dict[str, str]:
        """Measure one length."""
        with Reader(model) as reader:
            started = time.process_time()
            found = measure_length(reader, "same-targets", length, self.plans[length], seed=0)
            seconds = time.process_time() - started
        return {"targets": str(found.tokens), "loss": f"{found.loss:.5f}", "seconds": f"{seconds:.2f}"}

    @staticmethod
    def cell(row: dict[str, str], reference: dict[str, str] | None) -> str:
        """Return the loss and the ratio of time."""
        ratio = f"; {float(row['seconds']) / float(reference['seconds']):.2f}" if reference else ""
        return f"{float(row['loss']):.3f}{ratio}"


class Passkeys:
    """Pass keys, the mean over depths: the share chosen among ten, that written exactly, and the log-probability."""

    def __init__(self, arguments: argparse.Namespace, tokenizer: Any) -> None:
        self.tokenizer, self.depths, self.trials = tokenizer, arguments.depths, arguments.passkeys
        self.key = {"depths": " ".join(map(str, self.depths)), "keys": str(self.trials)}
        self.lengths = sorted(arguments.lengths)

    def measure(self, model: Any, length: int) -> dict[str, str]:
        """Measure one length."""
        rows = passkey_rows(model, self.tokenizer, [length], depths=self.depths, trials=self.trials)
        if rows[0].correct is None:
            raise SystemExit(f"pass keys at {length}: {rows[0].note}")
        return {
            name: f"{sum(getattr(row, name) for row in rows) / len(rows):.5f}"
            for name in ("correct", "exact", "log_probability")
        }

    @staticmethod
    def cell(row: dict[str, str], reference: dict[str, str] | None) -> str:
        """Return the share chosen among ten and the log-probability."""
        return f"{float(row['correct']):.2f}; {float(row['log_probability']):.2f}"


def main() -> None:
    """Measure what the file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a RoPE model, or one that was healed to rope")
    parser.add_argument("--name", help="name of the model in the file; default: the model")
    parser.add_argument("--text", default="demo:books", help="texts to measure on")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to read at the longest length")
    parser.add_argument("--passkeys", type=int, help="read so many pass keys at each depth, not a text")
    parser.add_argument("--depths", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="places of the pass keys")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--calibration-text", default="demo:book/train", help="text to calibrate on, from its start")
    parser.add_argument("--calibration-tokens", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("outputs/training-free.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = load_tokenizer(arguments.model), load_model(arguments.model)
    measured = (Losses if arguments.passkeys is None else Passkeys)(arguments, tokenizer)
    key = {"model": arguments.name or arguments.model} | measured.key
    with torch.no_grad():
        model(torch.zeros(1, 64, dtype=torch.int64))  # libraries are loaded before the first time is taken
    for scheme in arguments.schemes:
        done = read_rows(arguments.output)
        known = {int(row["length"]) for row in done if (key | {"scheme": scheme}).items() <= row.items()}
        missing = [length for length in measured.lengths if length not in known]
        if not missing:
            continue
        hf_posswap.swap(model, scheme, replace=is_swapped(model))
        if unfitted_reason(model) is not None:
            source = resolve_texts(arguments.calibration_text)[0]
            tokens = torch.tensor(tokenizer(source.read()).input_ids[: arguments.calibration_tokens])
            calibrate(model, tokens.view(-1, WINDOW).split(1), measure=False)
        for length in missing:
            found = measured.measure(model, length)
            add_row(arguments.output, key | {"scheme": scheme, "length": str(length)} | found)
            print(f"{scheme} at {length}: {found}", flush=True)
    print_table([row for row in read_rows(arguments.output) if key.items() <= row.items()], measured.cell)


if __name__ == "__main__":
    main()

"""What calibration and a little healing give back, on small real models: the numbers in docs/healing.md.

    python benchmarks/study_small.py gpt2 llama bert --output-dir docs/results/study-small

Each cell (scheme, start, share of the pretraining tokens, seed) is measured once and kept in a tidy CSV file beside the
versions and hardware; an interrupted study goes on where it stopped. On two cores: gpt2 takes about three hours, llama
one, bert a quarter. `--shares 0.01 --seeds 1` measures the most telling cells only.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from hf_posswap import AutoModel, calibrate, swap
from hf_posswap.calibration import text_windows
from hf_posswap.errors import UnsupportedError
from hf_posswap.evaluation.agreement import embedding_agreement
from hf_posswap.evaluation.perplexity import perplexity_rows
from hf_posswap.experiments.stages import calibrate_on
from hf_posswap.results.environment import collect_environment
from hf_posswap.results.files import write_text
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.swapped.questions import plain_model
from hf_posswap.swapped.tokenizers import special_tokens
from hf_posswap.training import HealingOptions, add_lora, from_files, heal, refine

PRETRAINING_TOKENS = 22_400_000
GPT2_LENGTHS = (256, 1024, 4096)
GPT2_SCHEMES = ("relative_bias", "t5:per_layer=true", "alibi:trainable=true:per_layer=true")
GENTLE_CONTROL, GENTLE_RATE = "control at a third of the rate", 3e-4
"""Trained again at the rate that heals swapped models best, the stock model forgets; this control forgets less."""
LIGHTER = ("scheme-only", "lora", "gentle")
"""Calibrated too, but healing moves less: the scheme's own parameters, these and adapters of rank 16, or all weights at
a third of the rate."""
SUPERVISED = "supervised"
"""Calibrated too, and healed by attention first, then outputs and hidden states, at the rate that the start chooses."""
STARTS = ("stock", "calibrated", "uncalibrated", *LIGHTER, SUPERVISED)
LLAMA_SCHEMES = ("relative_bias", "t5:per_layer=true", "alibi:trainable=true:per_layer=true", "alibi", "none")
BERT_SCHEMES = ("rope", "alibi:form=two-slope:trainable=true:per_layer=true")
FIELDS = ("study", "scheme", "start", "tokens", "seed", "length", "value", "above_stock", "seconds")


class Table:
    """The rows measured so far, in a CSV file that is rewritten whole after each cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, **key: Any) -> bool:
        """Return whether a cell is there."""
        return any(all(row[name] == str(value) for name, value in key.items()) for row in self.rows)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add a cell's rows and write the file."""
        self.rows += [{name: str(row.get(name, "")) for name in FIELDS} for row in rows]
        lines = [",".join(FIELDS), *(",".join(row[name] for name in FIELDS) for row in self.rows)]
        write_text(self.path, "\n".join(lines) + "\n")


class Gpt2Study:
    """Heals demo:gpt2 with a share of its pretraining tokens, calibrated or not, and heals its control."""

    def __init__(self, table: Table, arguments: argparse.Namespace) -> None:
        self.table, self.budget, self.precision = table, arguments.evaluation_tokens, arguments.precision
        self.tokenizer = load_tokenizer("demo:gpt2")
        documents, _ = from_files(["demo:books/train"])
        self.documents = list(map(str, documents))
        self.texts = [torch.tensor(self.tokenizer(str(text))["input_ids"]) for text in from_files(["demo:books"])[0]]
        self.windows = [text_windows(self.tokenizer, text, 256)[0] for text in self.documents[:32]]
        self.stock = self.losses(load_model("demo:gpt2"))[256]

    def losses(self, model: Any) -> dict[int, float]:
        """Return the losses on the measuring books, the same target tokens at each context length."""
        rows = perplexity_rows(plain_model(model), self.texts, GPT2_LENGTHS, ("same-targets",), budget=self.budget)
        return {row.length: row.loss for row in rows if row.loss is not None}

    def start(self, scheme: str, start: str) -> Any:
        """Return the model before healing."""
        model = load_model("demo:gpt2")
        if start != "stock":
            swap(model, scheme)
        if start in ("calibrated", *LIGHTER, SUPERVISED):
            calibrate(model, self.windows)
        return add_lora(model, rank=16) if start == "lora" else model

    def healed(self, scheme: str, start: str, tokens: int, seed: int) -> Any:
        """Return the model after healing with so many tokens."""
        model = self.start(scheme, start)
        if tokens == 0:
            return model
        gentle = scheme == GENTLE_CONTROL or start == "gentle"
        chosen = start == SUPERVISED
        options = HealingOptions(
            tokens=tokens,
            length=256,
            batch_size=2 if chosen else 16,
            # A model that is its own teacher learns nothing: the control learns the text itself.
            supervise=("attention", "logits", "hidden") if chosen else ("labels",) if start == "stock" else ("logits",),
            learning_rate=None if chosen else GENTLE_RATE if gentle else 1e-3,
            scheme_learning_rate=2e-2,
            train="scheme" if start == "scheme-only" else "all",
            precision=self.precision,
            seed=seed,
            checkpoint_every=0,
        )
        heal(model, self.documents, self.tokenizer, options)
        return model

    def measure(self, scheme: str, start: str, tokens: int = 0, seed: int = 0) -> None:
        """Measure one cell, unless it was measured before."""
        key = {"study": "gpt2", "scheme": scheme, "start": start, "tokens": tokens, "seed": seed}
        if self.table.has(**key):
            return
        began = time.perf_counter()
        found = self.losses(self.healed(scheme, start, tokens, seed))
        seconds = round(time.perf_counter() - began, 1)
        values = {length: {"value": loss, "above_stock": round(loss - self.stock, 5)} for length, loss in found.items()}
        self.table.add(key | {"length": length, "seconds": seconds} | row for length, row in values.items())
        print(key, {length: row["above_stock"] for length, row in values.items()}, flush=True)


def gpt2(table: Table, arguments: argparse.Namespace) -> None:
    """Measure the cells asked for; by default every scheme, start, share and seed, and the control."""
    study = Gpt2Study(table, arguments)
    cells = [("control", "stock"), (GENTLE_CONTROL, "stock")] if "stock" in arguments.starts else []
    whole = [start for start in arguments.starts if start in ("calibrated", "uncalibrated")]
    cells += [(scheme, start) for start in whole for scheme in GPT2_SCHEMES]
    for scheme, start in cells:
        study.measure(scheme, start)
    for share in arguments.shares:
        for seed in range(arguments.seeds):
            for scheme, start in cells:
                study.measure(scheme, start, round(share * PRETRAINING_TOKENS), seed)
    for start in (start for start in (*LIGHTER, SUPERVISED) if start in arguments.starts):
        for seed in range(arguments.seeds if start in ("gentle", SUPERVISED) else 1):
            for scheme in GPT2_SCHEMES:
                study.measure(scheme, start, PRETRAINING_TOKENS // 100, seed)


def llama(table: Table, arguments: argparse.Namespace) -> None:
    """Calibrate demo:llama without labels: the fit, then gradient steps on the scheme's own parameters."""
    tokenizer = load_tokenizer("demo:llama")
    documents, _ = from_files(["demo:books/train"])
    text = str(from_files(["demo:book/test"])[0][0])  # type: ignore[index]
    ids = torch.tensor(tokenizer(text)["input_ids"])
    windows = text_windows(tokenizer, str(next(iter(documents))), 512)[:16]

    def loss(model: Any) -> float:
        found = perplexity_rows(model, ids, [512], ("windows",), budget=16384)[0].loss
        return math.nan if found is None else found

    stock = loss(load_model("demo:llama"))
    for scheme in LLAMA_SCHEMES:
        keys = {
            stage: {"study": "llama", "scheme": scheme, "start": stage, "tokens": tokens, "seed": 0}
            for stage, tokens in (("swapped", 0), ("fitted", 8192), ("refined", arguments.refine_tokens))
        }
        if all(table.has(**key) for key in keys.values()):
            continue
        model = swap(load_model("demo:llama"), scheme)
        for stage, key in keys.items():
            began = time.perf_counter()
            try:
                if stage == "fitted":
                    calibrate(model, windows)
                if stage == "refined":
                    refine(model, documents, tokenizer, arguments.refine_tokens, precision=arguments.precision)
            except (UnsupportedError, ValueError) as error:
                print(f"{scheme}: {stage}: {error}")
                break
            if not table.has(**key):
                value = loss(model)
                seconds = round(time.perf_counter() - began, 1)
                row = {"length": 512, "value": value, "above_stock": round(value - stock, 5), "seconds": seconds}
                table.add([key | row])
                print(key, row, flush=True)


def bert(table: Table, arguments: argparse.Namespace) -> None:
    """Calibrate demo:bert and heal it to agree with its stock embeddings; see that it then reads 4096 tokens."""
    tokenizer = load_tokenizer("demo:bert")
    documents, _ = from_files(["demo:books/train"])
    frame = special_tokens(tokenizer)
    text = str(from_files(["demo:book/test"])[0][0])  # type: ignore[index]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])
    stock = load_model("demo:bert", auto_class=AutoModel)
    options = HealingOptions(
        tokens=arguments.bert_tokens,
        length=256,
        batch_size=4,
        supervise=("logits", "hidden=6"),  # each layer weighs as much as the embedding
        learning_rate=5e-4,
        precision=arguments.precision,
        checkpoint_every=0,
    )
    for scheme in BERT_SCHEMES:
        keys = {
            stage: {"study": "bert", "scheme": scheme, "start": stage, "tokens": tokens, "seed": 0}
            for stage, tokens in (("swapped", 0), ("calibrated", 8192), ("healed", arguments.bert_tokens))
        }
        if all(table.has(**key) for key in keys.values()):
            continue
        model = swap(load_model("demo:bert", auto_class=AutoModel), scheme)
        for stage, key in keys.items():
            began = time.perf_counter()
            if stage == "calibrated":
                calibrate_on(model, documents, tokenizer)
            if stage == "healed":
                heal(model, documents, tokenizer, options)
                _require_long(model, ids)
            if not table.has(**key):
                rows = embedding_agreement(model, stock, [ids[:16384]], (32, 64, 128, 256), *frame)
                seconds = round(time.perf_counter() - began, 1)
                found = [{"length": row.length, "value": row.cosine, "seconds": seconds} for row in rows]
                table.add(key | row for row in found)
                print(key, [(row["length"], row["value"]) for row in found], flush=True)


@torch.no_grad()
def _require_long(model: Any, ids: torch.Tensor) -> None:
    """Raise unless a model reads 4096 tokens to finite hidden states."""
    if not bool(torch.isfinite(model(input_ids=ids[None, :4096]).last_hidden_state).all()):
        raise ValueError("the healed model's hidden states are not finite at 4096 tokens")


STUDIES = {"gpt2": gpt2, "llama": llama, "bert": bert}


def main() -> None:
    """Run the studies named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=list(STUDIES))
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/study-small"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.0025, 0.05], help="gpt2: of pretraining")
    parser.add_argument("--seeds", type=int, default=3, help="gpt2: how many")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS, help="gpt2: before healing")
    parser.add_argument("--evaluation-tokens", type=int, default=16384)
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16", help="no: for CPUs without bfloat16")
    parser.add_argument("--refine-tokens", type=int, default=200_000)
    parser.add_argument("--bert-tokens", type=int, default=1_000_000)
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    environment = json.dumps(collect_environment(), indent=1)
    for name in arguments.studies:
        write_text(arguments.output_dir / f"{name}.environment.json", environment + "\n")
        STUDIES[name](Table(arguments.output_dir / f"{name}.csv"), arguments)


if __name__ == "__main__":
    main()

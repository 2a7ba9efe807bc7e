"""Measure encoders that other tools make longer beside those of hf_posswap, on the same model and texts.

Nothing is trained. The model is demo:bert, made to read 4096 tokens by

- lsg-converter: local, sparse and global attention, with its default settings;
- context-extension: a table of positions that is interpolated by a cubic spline, as its page recommends;
- the scheme `learned` of hf_posswap: a table that repeats, as that of lsg-converter does, under full attention.

Measured are the agreement of their embeddings with the stock model's as `hf-posswap finetune` measures it, retrieval as
`hf-posswap evaluate --measure retrieval` measures it, and the processor time for a text of 4096 tokens. The file is
written after each model, and models in it are not measured again. Each tool needs an environment of its own:

    python -m venv LSG && LSG/bin/pip install torch transformers==4.38.2 lsg-converter
    python -m venv CE && CE/bin/pip install torch context-extension
    python benchmarks/other_encoders.py --lsg-python LSG/bin/python --context-extension-python CE/bin/python
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import AutoModel

from hf_posswap import swap
from hf_posswap.evaluation.document_retrieval import retrieval_rows
from hf_posswap.evaluation.texts import tokenise
from hf_posswap.experiments.measuring import Measure
from hf_posswap.experiments.settings import EVALUATION_TOKENS
from hf_posswap.results.environment import collect_environment
from hf_posswap.results.writing import to_json
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.sources.models import resolve_model
from hf_posswap.texts.sources import resolve_texts

MODEL, TEXTS, LENGTH, SEED = "demo:bert", "demo:books", 4096, 0
SHORT, LONG = (32, 64, 128, 256), (128, 256, 512, 1024, LENGTH)
DOCUMENTS = 40
SCHEMES = (f"learned:tile:length={LENGTH}",)
INTERPOLATION = "cubic"
REPEATS = 3
COMMAND = (
    *("python", "benchmarks/other_encoders.py", "--lsg-python", "LSG/bin/python"),
    *("--context-extension-python", "CE/bin/python"),
)
"""What results say; where the environments are does not matter."""
PRINT_VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("context-extension", "sentence-transformers", "transformers")}))
"""
Made = Iterator[tuple[Any, dict[str, str]]]
"""A model and the versions of the packages that made it."""


def stock_model() -> Any:
    """Return the stock encoder."""
    return load_model(MODEL, auto_class=AutoModel).eval()


@contextmanager
def of_hf_posswap(scheme: str) -> Made:
    """Make the model with a scheme."""
    yield swap(stock_model(), scheme), {}


@contextmanager
def of_lsg(python: str) -> Made:
    """Make the model of lsg-converter, whose forward pass is computed in another process."""
    ours, theirs = Pipe()
    worker = Path(__file__).with_name("lsg_worker.py")
    command = [python, str(worker), str(theirs.fileno()), resolve_model(MODEL).path, str(LENGTH)]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    with closing(ours):
        versions = ours.recv()
        model = stock_model()
        width = model.config.hidden_size

        def forward(input_ids: Tensor, **_: Any) -> SimpleNamespace:
            ours.send(input_ids.tolist())
            used = ours.recv()
            hidden = torch.from_numpy(numpy.frombuffer(ours.recv_bytes(), dtype=numpy.float32).copy())
            return SimpleNamespace(last_hidden_state=hidden.view(*input_ids.shape, width), seconds=used)

        model.embeddings.position_embeddings = nn.Embedding(LENGTH, width)  # says how long a text may be
        model.forward = forward
        yield model, versions
    process.wait()


@contextmanager
def of_context_extension(python: str) -> Made:
    """Make the model of context-extension."""
    found = subprocess.run([python, "-c", PRINT_VERSIONS], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "model_name_or_path": resolve_model(MODEL).path,
            "max_seq_length": LENGTH,
            "interpolation_type": INTERPOLATION,
            "output_dir": folder,
        }
        command = [python, "-m", "context_extension.interpolate_embeddings", "--quiet"]
        subprocess.run([*command, *(f"--{name}={value}" for name, value in arguments.items())], check=True)
        yield load_model(folder, auto_class=AutoModel).eval(), json.loads(found.stdout)


@torch.no_grad()
def seconds(model: Any, ids: Tensor) -> float:
    """Return the shortest of several processor times of a forward pass on one text (1, L)."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        output = model(input_ids=ids)
        times.append(getattr(output, "seconds", time.process_time() - started))
    return min(times)


def main() -> None:
    """Measure every model and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lsg-python", help="Python of an environment with lsg-converter")
    parser.add_argument("--context-extension-python", help="Python of an environment with context-extension")
    parser.add_argument("--output", type=Path, default=Path("outputs/other-encoders.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    makers = {name: partial(of_hf_posswap, name) for name in SCHEMES}
    if arguments.lsg_python:
        makers["lsg-converter"] = partial(of_lsg, arguments.lsg_python)
    if arguments.context_extension_python:
        makers[f"context-extension, {INTERPOLATION}"] = partial(
            of_context_extension, arguments.context_extension_python
        )
    tokenizer = load_tokenizer(MODEL)
    sources = resolve_texts(TEXTS)
    texts = [source.read() for source in sources]
    ids = [tokenise(tokenizer, text) for text in texts]
    agreement = Measure("embedding", tokenizer, ids, SHORT, budget=EVALUATION_TOKENS, seed=SEED, cosines=True)
    agreement.remember(stock_model())
    facts = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    rows: list[dict[str, Any]] = facts.get("measured", [])
    packages: dict[str, dict[str, str]] = facts.get("packages", {})
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        if any(row["model"] == name for row in rows):
            continue
        with make() as (model, versions):
            agreed = [asdict(row) | {"metric": "agreement", "value": row.cosine} for row in agreement.rows(model)]
            found = retrieval_rows(model, tokenizer, texts, LONG, most_documents=DOCUMENTS, seed=SEED)
            ranked = [asdict(row) | {"texts": row.queries} for row in found if row.metric == "ndcg@10"]
            timed = []
            if ranked[-1]["value"] is not None:
                value = seconds(model, ids[0][None, :LENGTH])
                timed = [{"metric": "seconds", "length": LENGTH, "value": value, "texts": 1}]
        packages |= {name: versions} if versions else {}
        for row in [*agreed, *ranked, *timed]:
            kept = {key: row.get(key) for key in ("metric", "length", "value", "low", "high", "texts", "note")}
            rows.append({"model": name} | kept)
            print(rows[-1], flush=True)
        facts = {
            "model": MODEL,
            "texts": [{"name": source.name, "tokens": len(own)} for source, own in zip(sources, ids, strict=True)],
            "documents": DOCUMENTS,
            "seed": SEED,
            "environment": collect_environment(COMMAND),
            "packages": packages,
            "measured": rows,
        }
        arguments.output.write_text(to_json(facts), encoding="utf-8")


if __name__ == "__main__":
    main()

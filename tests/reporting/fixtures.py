"""Result files made up for tests, of every kind of the contract. None of these numbers was measured."""

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCHEMES = ("alibi", "t5", "rope:yarn", "sinusoidal")
STAGES = ("swapped", "calibrated", "healed")
LENGTHS = (64, 128, 256, 512, 1024)
TRAIN_LENGTH = 256
COST = {"alibi": 1.0, "t5": 1.3, "rope:yarn": 0.4, "sinusoidal": 1.6}
LEFT = {"swapped": 1.0, "calibrated": 0.5, "healed": 0.06}


def envelope(kind: str, rows: list[dict[str, Any]], model: str = "made-up", **more: Any) -> dict[str, Any]:
    return {
        "format_version": 1,
        "kind": kind,
        "model": model,
        "seed": 0,
        "train_length": TRAIN_LENGTH,
        "settings": {"dtype": "float32"},
        "texts": [{"name": "book.txt", "tokens": 4096, "sha256": "0" * 64}],
        "environment": {
            "command": f"hf-posswap made-up-for-tests --kind {kind}",
            "versions": {"hf_posswap": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "hardware": {"processor": "none", "cores": 2, "accelerators": []},
        },
        "rows": rows,
    } | more


def measured(schemes: Iterable[str] = SCHEMES) -> list[tuple[str, str]]:
    """Scheme and stage of everything that is measured."""
    swapped = [(scheme, stage) for scheme in schemes for stage in STAGES]
    return [("stock", "stock"), *swapped, ("stock", "control")]


def loss(scheme: str, stage: str, length: float) -> float:
    base = 3.9 - 0.02 * math.log2(length / 64)
    if scheme == "stock":
        return base + (0.02 if stage == "control" else 0.0)
    return base + COST[scheme] * LEFT[stage] + max(0.0, math.log2(length / TRAIN_LENGTH)) * 0.05 * COST[scheme]


def lengths(protocols: Iterable[str] = ("windows", "same-targets"), seeds: Iterable[int] = (0,)) -> dict[str, Any]:
    rows = []
    for scheme, stage in measured():
        for protocol in protocols:
            for length in LENGTHS:
                for seed in seeds:
                    gap = scheme == "stock" and length > TRAIN_LENGTH
                    value = None if gap else loss(scheme, stage, length) + 0.01 * seed
                    rows.append({
                        "model": "made-up", "scheme": scheme, "stage": stage, "seed": seed, "protocol": protocol,
                        "length": length, "loss": value, "perplexity": None if value is None else math.exp(value),
                        "loss_low": None if value is None else value - 0.05,
                        "loss_high": None if value is None else value + 0.05,
                        "tokens": 0 if gap else 4096, "windows": 0 if gap else 16,
                        "note": "longest position 256" if gap else "",
                    })  # fmt: skip
    return envelope("comparison", rows)


def positions() -> dict[str, Any]:
    rows = []
    for scheme, stage in measured():
        for length in (256, 1024):
            edges = [0, *(2**n for n in range(3, 11) if 2**n <= length)]
            for first, last in itertools.pairwise(edges):
                gap = scheme == "stock" and length > TRAIN_LENGTH
                place = (first + last) / 2 + 1
                rows.append({
                    "model": "made-up", "scheme": scheme, "stage": stage, "seed": 0, "length": length,
                    "position_from": first, "position_to": last,
                    "loss": None if gap else loss(scheme, stage, place) + 2 / place,
                    "tokens": 0 if gap else 512, "note": "longest position 256" if gap else "",
                })  # fmt: skip
    return envelope("loss-by-position", rows)


def passkey() -> dict[str, Any]:
    rows = []
    for scheme, stage in measured():
        for length in LENGTHS:
            for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
                gap = scheme == "stock" and length > TRAIN_LENGTH
                share = max(0.0, min(1.0, 1.1 - (1 - depth) * math.log2(length / 32) / 5 - 0.3 * LEFT.get(stage, 0)))
                rows.append({
                    "model": "made-up", "scheme": scheme, "stage": stage, "seed": 0, "length": length, "depth": depth,
                    "correct": None if gap else round(share * 20) / 20, "exact": None, "trials": 0 if gap else 20,
                    "chance": 0.1, "note": "longest position 256" if gap else "",
                })  # fmt: skip
    return envelope("passkey", rows)


def retrieval() -> dict[str, Any]:
    rows = []
    for scheme, stage in measured(("alibi", "t5")):
        for metric in ("ndcg@10", "recall@1", "recall@10"):
            for length in (128, 256, 512):
                gap = scheme == "stock" and length > TRAIN_LENGTH
                value = 0.4 + 0.06 * math.log2(length / 64) - 0.2 * LEFT.get(stage, 0) * COST.get(scheme, 0)
                rows.append({
                    "model": "made-up encoder", "scheme": scheme, "stage": stage, "seed": 0, "length": length,
                    "metric": metric, "value": None if gap else value, "low": None if gap else value - 0.03,
                    "high": None if gap else value + 0.03, "queries": 0 if gap else 200,
                    "note": "longest position 256" if gap else "",
                })  # fmt: skip
    return envelope("retrieval", rows, model="made-up encoder")


def masked() -> dict[str, Any]:
    record = lengths(["masked"])
    rows = [row | {"model": "made-up encoder"} for row in record["rows"]]
    return record | {"kind": "loss-by-length", "model": "made-up encoder", "rows": rows}


def bench() -> dict[str, Any]:
    rows = []
    for scheme in ("alibi", "t5", "rope:yarn", "sinusoidal", "dense bias in eager attention"):
        for mode in ("prefill", "training", "decode"):
            for length in (512, 2048, 8192):
                gap = scheme.startswith("dense") and length == 8192
                ratio = (1 + length / 4096 if scheme.startswith("dense") else 0.9 + 0.1 * len(scheme) / 4) + 0.02
                rows.append({
                    "model": "made-up", "scheme": scheme, "device": "cpu", "dtype": "float32", "backend": "sdpa",
                    "mode": mode, "length": length, "time_ratio": None if gap else ratio,
                    "time_ratio_low": None if gap else ratio * 0.97, "time_ratio_high": None if gap else ratio * 1.04,
                    "memory_ratio": None if gap or mode == "decode" else 1 + (ratio - 1) / 2,
                    "repeats": 0 if gap else 9, "note": "out of memory" if gap else "",
                })  # fmt: skip
    return envelope("bench", rows, texts=[])


def biases() -> dict[str, Any]:
    distances = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256]
    shared = {"model": "made-up", "seed": 0}
    rows = [
        shared | {"scheme": "alibi", "stage": "swapped", "layer": None, "head": head, "distance": distance,
                  "value": -distance * 2.0 ** -(2 * head + 2), "quantity": "bias", "note": ""}
        for head in range(4) for distance in distances
    ]  # fmt: skip
    rows += [
        shared | {"scheme": "t5", "stage": "swapped", "layer": None, "head": None, "distance": distance, "value": 0.0,
                  "quantity": "bias", "note": ""}
        for distance in distances
    ]  # fmt: skip
    rows += [
        shared | {"scheme": "t5", "stage": "calibrated", "layer": layer, "head": head, "distance": distance,
                  "value": 2 - (1 + layer) * math.log2(1 + distance) / (1 + head), "quantity": "bias", "note": ""}
        for layer in range(3) for head in range(4) for distance in distances
    ]  # fmt: skip
    rows += [
        shared | {"scheme": "rope:yarn", "stage": "swapped", "layer": None, "head": None, "distance": distance,
                  "value": math.cos(distance / 100), "quantity": "cosine-sum", "note": ""}
        for distance in distances
    ]  # fmt: skip
    rows.append(
        shared | {"scheme": "sinusoidal", "stage": "swapped", "layer": None, "head": None, "distance": None,
                  "value": None, "quantity": "bias", "note": "enters at the embeddings only"}
    )  # fmt: skip
    return envelope("biases", rows)


MAKERS = {
    "compare": lengths,
    "positions": positions,
    "passkey": passkey,
    "retrieval": retrieval,
    "lengths": masked,
    "bench": bench,
    "biases": biases,
}


def write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_all(folder: Path) -> Path:
    """Write a file of every kind, each into a folder of its own."""
    for name, make in MAKERS.items():
        write(folder / name, name, make())
    return folder

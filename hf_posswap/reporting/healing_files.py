"""What `hf-posswap finetune` measured, as a result file: healing.json keeps it beside much else."""

from collections.abc import Mapping
from typing import Any

STAGES = ("stock", "swapped", "calibrated", "healed", "control")
UNSWAPPED = ("stock", "control")


def is_healing(content: Any) -> bool:
    """Return whether the content of a JSON file is that of a healing.json."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("evaluation"), dict)
        and isinstance(content.get("healing"), dict)
    )


def healing_result(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a result file of losses by length, a row for each stage and length.

    Of a model of embeddings the loss is 1 − the mean cosine to the stock model's, as `hf-posswap compare` writes it.
    """
    entry, options = _mapping(content.get("pos_scheme")), _mapping(content.get("options"))
    scheme = content.get("scheme") or entry.get("name") or ""
    seed = options.get("seed")
    rows = [
        {"scheme": "stock" if stage in UNSWAPPED else scheme, "stage": stage, "seed": seed} | _row(row)
        for stage in STAGES
        for row in content["evaluation"].get(stage) or []
        if isinstance(row, dict)
    ]
    environment = _mapping(content.get("environment"))
    return {
        "format_version": content.get("format_version", 1),
        "kind": "loss-by-length",
        "model": str(content.get("stock") or entry.get("base_model") or content.get("model", "")),
        "seed": seed,
        "train_length": content.get("train_length"),
        "settings": {"healing": options | {"tokens": _mapping(content["healing"]).get("tokens")}},
        "texts": content.get("evaluation_texts"),
        "environment": environment,
        "rows": rows,
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    if "cosine" not in row:
        return dict(row)
    cosine = row["cosine"]
    distance = None if cosine is None else 1.0 - cosine
    shared = {"protocol": "agreement", "length": row.get("length"), "note": row.get("note")}
    return shared | {"loss": distance, "windows": row.get("texts")}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

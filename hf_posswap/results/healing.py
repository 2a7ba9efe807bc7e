"""What `hf-posswap finetune` measured, as a result file: healing.json keeps it beside much else."""

from collections.abc import Mapping
from typing import Any

from hf_posswap.results.kinds import AGREEMENT, CONTROL, LENGTHS, STAGES, STOCK


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
    rows = [
        {"scheme": STOCK if stage in (STOCK, CONTROL) else scheme, "stage": stage} | _row(row)
        for stage in STAGES
        for row in content["evaluation"].get(stage) or []
        if isinstance(row, dict)
    ]
    return {
        "format_version": content.get("format_version", 1),
        "kind": LENGTHS.name,
        "model": str(content.get("stock") or entry.get("base_model") or content.get("model", "")),
        "seed": options.get("seed"),
        "train_length": content.get("train_length"),
        "settings": {"healing": options | {"tokens": _mapping(content["healing"]).get("tokens")}},
        "texts": content.get("evaluation_texts"),
        "environment": _mapping(content.get("environment")),
        "rows": rows,
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    if "cosine" not in row:
        return dict(row)
    cosine = row["cosine"]
    distance = 1.0 - cosine if isinstance(cosine, int | float) else cosine
    shared = {"protocol": AGREEMENT, "length": row.get("length"), "note": row.get("note")}
    return shared | {"loss": distance, "windows": row.get("texts")}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

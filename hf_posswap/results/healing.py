"""healing.json, the file of `hf-posswap finetune`: its measurements as a result file, and its steps in a few rows."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hf_posswap.results.kinds import AGREEMENT, CONTROL, LENGTHS, STAGES, STOCK

MOST_STEPS = 25
"""Maximum number of rows of a step history in a result file."""
AVERAGED = ("loss", "gradient_norm", "tokens_per_second")
"""Numbers of a step that are averaged over a stretch; of the others the last value is kept."""


def thinned(history: Sequence[Mapping[str, Any]], most: int = MOST_STEPS) -> list[dict[str, Any]]:
    """Return the history of a run's steps in a few rows, which include the first and the last step of each stage.

    The steps between are divided into stretches of about equal length. The row of a stretch is that of its last step,
    with loss, gradient norm and speed averaged over the stretch.

    Args:
        history: a row for each step.
        most: maximum number of rows to return; at least 3 for each stage.
    """
    if len(history) <= most:
        return [dict(row) for row in history]
    stages = [list(rows) for _, rows in itertools.groupby(history, key=lambda row: row.get("stage"))]
    if len(stages) > 1:
        room = [max(3, most * len(rows) // len(history)) for rows in stages]
        room[-1] = max(3, most - sum(room[:-1]))
        return [row for rows, most in zip(stages, room, strict=True) for row in thinned(rows, most)]
    inner, stretches = history[1:-1], most - 2
    ends = [len(inner) * place // stretches for place in range(stretches + 1)]
    means = (_mean_step(inner[first:last]) for first, last in itertools.pairwise(ends))
    return [dict(history[0]), *means, dict(history[-1])]


def is_healing(content: Any) -> bool:
    """Return whether the content of a JSON file is a healing.json."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("evaluation"), dict)
        and isinstance(content.get("healing"), dict)
    )


def healing_result(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a result file of losses by length, a row for each stage and length.

    For an embedding model the loss is 1 − the mean cosine to the stock model's embeddings, as in `hf-posswap compare`.
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


def _mean_step(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last = dict(steps[-1])
    return last | {name: fmean(step[name] for step in steps) for name in AVERAGED if name in last}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    if "cosine" not in row:
        return dict(row)
    cosine = row["cosine"]
    distance = 1.0 - cosine if isinstance(cosine, int | float) else cosine
    shared = {"protocol": AGREEMENT, "length": row.get("length"), "note": row.get("note")}
    return shared | {"loss": distance, "windows": row.get("texts")}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

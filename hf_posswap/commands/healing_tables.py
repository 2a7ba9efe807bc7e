"""Tables of a healing experiment's results."""

from collections.abc import Iterator
from typing import Any

import typer

from hf_posswap.commands.console import print_table
from hf_posswap.results.kinds import STAGES


def print_result(result: dict[str, Any]) -> None:
    """Print the losses of healing, and the measurements by length."""
    rows = [
        row
        for name, run in (("healed", result["healing"]), ("control", result["control"]))
        if run is not None
        for row in _stages(name, run)
    ]
    processes = "1 process" if result["processes"] == 1 else f"{result['processes']} processes"
    numbers = ["first step", "last step", "tokens", "µs a token"]
    print_table(
        f"Loss of healing on {processes} (nats a token, or what the objective counts)",
        ["model", *numbers],
        rows,
        numbers,
    )
    learnt = result["healing"]["supervision"]
    typer.echo(f"Learnt from {', '.join(learnt)}.")
    measured = [name for name in STAGES if name in result["evaluation"]]
    if not measured:
        return
    lengths = [row["length"] for row in result["evaluation"][measured[0]]]
    key, title = _quantity(result["evaluation"][measured[0]][0])
    body = [(name, *(_cell(row[key]) for row in result["evaluation"][name])) for name in measured]
    print_table(title, ["model", *map(str, lengths)], body, list(map(str, lengths)))
    notes = {f"{name}: {row['note']}" for name in measured for row in result["evaluation"][name] if row["note"]}
    for line in sorted(notes):
        typer.echo(f"— {line}")


def _stages(name: str, run: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each stage of a run: its losses, its tokens and what a token cost."""
    for stage, cost in run["costs"].items():
        losses = [row["loss"] for row in run["history"] if row["stage"] == stage]
        label = f"{name}, attention" if stage == "attention" else name
        yield (
            label,
            f"{losses[0]:.4f}",
            f"{losses[-1]:.4f}",
            f"{cost['tokens']:,}",
            f"{cost['microseconds_per_token']:,.0f}",
        )


def _quantity(row: dict[str, Any]) -> tuple[str, str]:
    if "cosine" in row:
        return "cosine", "Cosine to the stock model's embeddings, by length of the text"
    if row["protocol"] == "masked":
        return "loss", "Loss on the texts of --eval-file, in nats a masked token, by length (the same masked tokens)"
    return "loss", "Loss on the texts of --eval-file, in nats a token, by context length (the same target tokens)"


def _cell(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"

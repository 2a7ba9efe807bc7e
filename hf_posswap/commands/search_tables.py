"""A search as tables in the terminal: the ranking, what layers cost, and the winner's recipe."""

from collections.abc import Mapping
from typing import Any

import typer

from hf_posswap.commands.console import print_table
from hf_posswap.reporting.figures import number


def print_result(result: Mapping[str, Any]) -> None:
    """Print the ranking, the cost of each layer if it was measured, and the commands that make the winner."""
    budget, train_length, length = result["budget"], result["train_length"], result["target_length"]
    heading = (
        f"Ranking ({result['model']}, from {train_length} to {length} tokens, {budget['used']:,} of "
        f"{budget['tokens']:,} healing tokens used)"
    )
    numeric = ("healed on", f"loss at {length}", f"lost at {train_length}")
    columns = ("", "scheme", "healed on", f"loss at {length}", "95% interval", f"lost at {train_length}", "outcome")
    print_table(heading, columns, map(_row, result["ranking"]), numeric)
    typer.echo(result["objective"])
    for entry in result["ranking"]:
        if entry["reason"]:
            typer.echo(f"— {entry['scheme']}: {entry['reason']}")
    _print_mixes(result)
    typer.echo(f"\nThe winner is {result['winner']}. What makes it anew:")
    for command in result["recipe"]["again"]:
        typer.echo(f"  {command}")
    typer.echo("What heals it further:")
    typer.echo(f"  {result['recipe']['further']}")


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "loss" not in entry:
        return str(entry["rank"]), entry["scheme"], "—", "—", "—", "—", entry["fate"]
    low, high = entry["loss_low"], entry["loss_high"]
    lost = f"{entry['lost_at_train_length']:+.3f}" + ("" if entry["holds"] else ", too much")
    interval = "one window" if low is None else f"{low:.3f} to {high:.3f}"
    healed = f"{entry['healing_tokens']:,}"
    return str(entry["rank"]), entry["scheme"], healed, f"{entry['loss']:.3f}", interval, lost, entry["fate"]


def _print_mixes(result: Mapping[str, Any]) -> None:
    mixes = result["mixes"]
    if mixes["refusal"] is not None:
        typer.echo(f"There are no mixes: {mixes['refusal']}.")
    if mixes["layers"]:
        costs = [(str(layer["layer"]), number(layer["cost"])) for layer in mixes["layers"]]
        heading = f"What {mixes['scheme']} costs in one layer alone, at {result['train_length']} tokens, in nats"
        print_table(heading, ("layer", "cost"), costs, ("layer", "cost"))

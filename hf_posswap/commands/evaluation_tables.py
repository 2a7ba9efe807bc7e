"""Tables of an evaluation's results, with lengths as columns and the reasons of gaps below each table."""

from collections.abc import Callable, Sequence
from typing import Any

import typer

from hf_posswap.commands.console import print_table
from hf_posswap.results.kinds import PROTOCOL_WORDS

GAP = "—"

Row = dict[str, Any]


def print_results(results: dict[str, dict[str, Any]]) -> None:
    """Print the tables of every result file; for a kind without values, the reasons of its gaps."""
    printers: dict[str, Callable[[dict[str, Any]], None]] = {
        "lengths": _print_lengths,
        "positions": _print_positions,
        "passkey": _print_passkey,
        "retrieval": _print_retrieval,
        "ruler": _print_ruler,
        "needles": _print_needles,
    }
    for name, result in results.items():
        if name in printers:
            printers[name](result)
        _print_notes(result["rows"])


def _print_lengths(result: dict[str, Any]) -> None:
    for protocol, words in PROTOCOL_WORDS.items():
        rows = [row for row in result["rows"] if row["protocol"] == protocol]
        if rows:
            cells = [
                (
                    str(row["length"]),
                    _number(row["loss"], ".4f"),
                    _number(row["perplexity"], ".2f"),
                    _interval(row["loss_low"], row["loss_high"]),
                    f"{row['tokens']:,}",
                )
                for row in rows
            ]
            columns = ("length", "loss", "perplexity", "95% interval of the loss", "tokens")
            print_table(f"Loss in nats a token (perplexity), {words.told}: {_name(result)}", columns, cells, columns)


def _print_positions(result: dict[str, Any]) -> None:
    """Print the loss of each quarter of the positions; the file has all bins."""
    lengths = sorted({row["length"] for row in result["rows"]})
    cells = []
    for length in lengths:
        rows = [row for row in result["rows"] if row["length"] == length]
        quarters = [
            [row for row in rows if number * length / 4 <= row["position_from"] < (number + 1) * length / 4]
            for number in range(4)
        ]
        cells.append((str(length), *(_number(_mean(quarter), ".4f") for quarter in quarters)))
    columns = ("length", "first quarter", "second", "third", "last")
    print_table(f"Loss by position in the window: {_name(result)}", columns, cells, columns)


def _print_passkey(result: dict[str, Any]) -> None:
    rows = result["rows"]
    lengths = [str(length) for length in dict.fromkeys(row["length"] for row in rows)]
    found = {(str(row["length"]), row["depth"]): row for row in rows}
    cells = [
        (f"{depth:.2f}", *(_passkey_cell(found[length, depth]) for length in lengths))
        for depth in sorted({row["depth"] for row in rows})
    ]
    print_table(
        f"Pass keys found by depth and length, chance {rows[0]['chance']:.0%} (in brackets: written exactly): "
        f"{_name(result)}",
        ("depth", *lengths),
        cells,
        lengths,
    )


def _print_retrieval(result: dict[str, Any]) -> None:
    rows = result["rows"]
    if "documents" not in result:  # retrieval was not possible; the notes give the reason
        typer.echo(f"Retrieval was not measured: {_name(result)}")
        return
    lengths = [str(length) for length in dict.fromkeys(row["length"] for row in rows)]
    found = {(row["metric"], str(row["length"])): row for row in rows}
    cells = [
        (metric, *(_retrieval_cell(found[metric, length]) for length in lengths), f"{result['chance'][metric]:.3f}")
        for metric in dict.fromkeys(row["metric"] for row in rows)
    ]
    queries = max(row["queries"] for row in rows)
    title = (
        f"Retrieval among {result['documents']} documents by tokens read of each, {queries} queries from beyond their "
        f"first {result['queries_deeper_than']} tokens: {_name(result)}"
    )
    print_table(title, ("metric", *lengths, "chance"), cells, (*lengths, "chance"))


def _print_ruler(result: dict[str, Any]) -> None:
    title = (
        "RULER's tasks: share of the answers written exactly (in brackets: log-probability of the right answer against "
        f"chance, nats a token): {_name(result)}"
    )
    _print_by_length(result["rows"], title, "task", lambda row: str(row["task"]), _ruler_cell)


def _print_needles(result: dict[str, Any]) -> None:
    rows = result["rows"]
    chances = dict.fromkeys(f"{row['metric']} {row['chance']:.3f}" for row in rows)
    title = f"Retrieval of needles by length of the documents, chance {', '.join(chances)}: {_name(result)}"
    _print_by_length(rows, title, "metric", lambda row: f"{row['task']} {row['metric']}", _retrieval_cell)


def _print_by_length(
    rows: Sequence[Row], title: str, heading: str, label: Callable[[Row], str], cell: Callable[[Row], str]
) -> None:
    """Print a table with a line for each label and a column for each length."""
    lengths = [str(length) for length in dict.fromkeys(row["length"] for row in rows)]
    found = {(label(row), str(row["length"])): row for row in rows}
    cells = [(name, *(cell(found[name, length]) for length in lengths)) for name in dict.fromkeys(map(label, rows))]
    print_table(title, (heading, *lengths), cells, lengths)


def _ruler_cell(row: Row) -> str:
    return GAP if row["score"] is None else f"{row['score']:.0%} ({row['gain']:+.2f})"


def _name(result: dict[str, Any]) -> str:
    row = result["rows"][0]
    return f"{row['model']}, {row['scheme']}" + ("" if row["stage"] in ("stock", "swapped") else f", {row['stage']}")


def _print_notes(rows: Sequence[Row]) -> None:
    gaps: dict[str, list[int]] = {}
    for row in rows:
        if row["note"] and row["length"] not in gaps.setdefault(row["note"], []):
            gaps[row["note"]].append(row["length"])
    for reason, lengths in gaps.items():
        typer.echo(f"{GAP} at length {', '.join(map(str, lengths))}: {reason}")


def _mean(rows: Sequence[Row]) -> float | None:
    """Return the token-weighted mean loss."""
    scored = [row for row in rows if row["loss"] is not None]
    tokens = sum(row["tokens"] for row in scored)
    return sum(row["loss"] * row["tokens"] for row in scored) / tokens if tokens else None


def _number(value: float | None, form: str) -> str:
    return GAP if value is None else format(value, form)


def _interval(low: float | None, high: float | None) -> str:
    return GAP if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _passkey_cell(row: Row) -> str:
    return GAP if row["correct"] is None else f"{row['correct']:.0%} ({row['exact']:.0%})"


def _retrieval_cell(row: Row) -> str:
    if row["low"] is None:
        return _number(row["value"], ".3f")
    return f"{row['value']:.3f} ± {(row['high'] - row['low']) / 2:.3f}"

"""`hf-posswap compare`: perplexity against length for several schemes on one model."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_posswap.commands.console import (
    SCHEME_HELP,
    JsonOption,
    note,
    parse_numbers,
    print_table,
    quiet_libraries,
    split_list,
)

if TYPE_CHECKING:
    from hf_posswap.comparison import Observer, Prepared

PROTOCOL_TITLES = {
    "windows": "Perplexity, non-overlapping windows",
    "same-targets": "Perplexity, same target tokens with ever longer context",
}


def compare(
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="A folder, a Hub name, a GGUF file, or demo:gpt2, demo:llama."),
    ],
    schemes: Annotated[str, typer.Option(metavar="S,S,…", help=f"Schemes, separated by commas. {SCHEME_HELP}")],
    text: Annotated[
        list[str], typer.Option(metavar="FILE", help="A UTF-8 text, or demo:books. May be given several times.")
    ],
    lengths: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of tokens to read at once.")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="DIR", help="Where compare.csv, .json and .png are written.")
    ] = Path("outputs/compare"),
    tokens: Annotated[
        int, typer.Option(metavar="N", help="About how many tokens to read for each length, protocol and scheme.")
    ] = 8192,
    seed: Annotated[int, typer.Option(help="Of the bootstrap intervals and of schemes that start at random.")] = 0,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, …; by default CUDA where there is one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well a model reads, by length, as it is and with each scheme swapped in."""
    quiet_libraries()
    from hf_posswap import comparison
    from hf_posswap.reporting.comparison_files import to_json, write_comparison
    from hf_posswap.reporting.files import prepare_folder

    settings = comparison.Settings(
        model=model,
        schemes=tuple(split_list(schemes)),
        texts=tuple(text),
        lengths=tuple(parse_numbers(lengths, "--lengths")),
        tokens=tokens,
        seed=seed,
        dtype=_checked_dtype(dtype),
        device=device,
    )
    prepared = comparison.prepare(settings)
    prepare_folder(output_dir)
    for refusal in prepared.refusals:
        note(f"{refusal.scheme} is not measured: {refusal.reason}")
    with _progress(prepared) as observer:
        result = comparison.run(prepared, observer)
    files = write_comparison(result, output_dir)
    if as_json:
        typer.echo(to_json(result), nl=False)
        _list_files(files, to_stderr=True)
    else:
        _print_result(result)
        _list_files(files, to_stderr=False)


def _print_result(result: Mapping[str, Any]) -> None:
    """Print one table for each protocol, then the reasons of the gaps."""
    rows = result["rows"]
    lengths = [str(length) for length in sorted({row["length"] for row in rows})]
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    cells = {(row["protocol"], row["scheme"], str(row["length"])): _format(row["perplexity"]) for row in rows}
    for protocol, title in PROTOCOL_TITLES.items():
        body = [(scheme, *(cells[protocol, scheme, length] for length in lengths)) for scheme in schemes]
        print_table(
            f"{title} ({result['model']}, train length {result['train_length']})", ("scheme", *lengths), body, lengths
        )
    for message in dict.fromkeys(f"{row['scheme']}: {row['note']}" for row in rows if row["note"]):
        typer.echo(f"— {message}")


def _format(perplexity: float | None) -> str:
    if perplexity is None:
        return "—"
    return f"{perplexity:.2f}" if perplexity < 1000 else f"{perplexity:.4g}"


def _list_files(files: Sequence[Path], to_stderr: bool) -> None:
    typer.echo("\nWrote:", err=to_stderr)
    for path in files:
        typer.echo(f"  {path}", err=to_stderr)


@contextlib.contextmanager
def _progress(prepared: "Prepared") -> "Iterator[Observer]":
    """Show progress on stderr: a bar on a terminal, one line for each scheme elsewhere."""
    from hf_posswap.commands.progress import BarObserver, LineObserver

    if not sys.stderr.isatty():
        yield LineObserver(prepared)
        return
    with BarObserver(prepared) as observer:
        yield observer


def _checked_dtype(dtype: str) -> str:
    if dtype not in {"float32", "bfloat16", "float16"}:
        raise typer.BadParameter(f"{dtype!r}. Allowed: float32, bfloat16, float16.", param_hint="--dtype")
    return dtype

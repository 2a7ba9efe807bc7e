"""`hf-posswap bench`: time and memory of a swapped model, as ratios to the unswapped one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.benchmarking.settings import BenchmarkSettings
from hf_posswap.commands.console import JsonOption, interruptible, note, print_table, quiet_libraries
from hf_posswap.commands.generated import takes


@takes(
    BenchmarkSettings,
    "given",
    arguments=("model",),
    help={"device": "cpu or cuda. Default: cuda if it is available."},
    defaults={"device": None},
)
def bench(
    *,
    given: dict[str, Any],
    threads: Annotated[int | None, typer.Option(help="Threads of torch; by default its own choice.", min=1)] = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="DIR", help="Where bench.csv and bench.json are written.")
    ] = Path("outputs/bench"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure cells again that DIR has already.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure time and peak memory by scheme and length, as ratios to the unswapped model in the same run.

    Stock and swapped model run in turn; a ratio is the median over the repeats, its range their smallest and largest.
    Models run without a head, whose cost is the same. A run that was stopped goes on where it was.
    """
    quiet_libraries()
    import torch

    from hf_posswap.benchmarking.files import read_rows, write_bench
    from hf_posswap.benchmarking.runner import check_device, run
    from hf_posswap.commands.counting import count_progress
    from hf_posswap.results.files import prepare_folder

    settings = BenchmarkSettings(**{"device": "cuda" if torch.cuda.is_available() else "cpu"} | given)
    check_device(settings.device)
    if threads is not None:
        torch.set_num_threads(threads)
    prepare_folder(output_dir)
    known = [] if fresh else read_rows(output_dir, settings)
    if known:
        note(f"{output_dir} has {len(known)} cells already; --fresh measures them again.")
    way_on = f"The same command goes on from {output_dir / 'bench.json'}."
    with interruptible(lambda: way_on), count_progress("measuring", "cell") as progress:
        rows = run(settings, known, lambda so_far: write_bench(settings, so_far, output_dir), progress)
    files = write_bench(settings, rows, output_dir)
    if as_json:
        typer.echo(files[1].read_text(encoding="utf-8"), nl=False)
    else:
        print_rows(rows)
    for path in files:
        typer.echo(f"Wrote {path}", err=as_json)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the ratios and, below them, the reasons of missing cells."""
    columns = ("scheme", "mode", "dtype", "backend", "length", "time", "range", "peak memory")
    measured = [row for row in rows if row["time_ratio"] is not None]
    body = [
        (
            row["scheme"],
            row["mode"],
            row["dtype"],
            row["backend"],
            str(row["length"] or ""),
            f"{row['time_ratio']:.2f}",
            f"{row['time_ratio_low']:.2f}–{row['time_ratio_high']:.2f}",
            "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.3f}",
        )
        for row in measured
    ]
    title = f"Ratios to the unswapped model ({rows[0]['model']} on {rows[0]['device']}), lower is better"
    print_table(title, columns, body, right=("length", "time", "range", "peak memory"))
    for row in rows:
        if row["note"]:
            typer.echo(f"— {row['scheme']}, {row['mode']}, {row['backend']}, {row['length']}: {row['note']}")

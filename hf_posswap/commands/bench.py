"""`hf-posswap bench`: time and memory of a swapped model, as ratios to the unswapped one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import (
    SCHEME_HELP,
    JsonOption,
    interruptible,
    note,
    parse_numbers,
    print_table,
    quiet_libraries,
    split_list,
)


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A shape with random weights, which are as fast as trained ones: smollm2, gpt2. Or a folder, a Hub "
            "name, a GGUF file, demo:gpt2, demo:bert, demo:llama.",
        ),
    ],
    schemes: Annotated[str, typer.Option(metavar="S,S,…", help=f"Schemes, separated by commas. {SCHEME_HELP}")],
    lengths: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens read at once, or in the cache.")] = "512,2048",
    modes: Annotated[
        str,
        typer.Option(
            metavar="M,M,…",
            help="prefill, training (forward and backward pass), decode (a token, N cached); attention and "
            "attention-training (one layer's attention alone); import and load (from_pretrained).",
        ),
    ] = "prefill,training,decode",
    dtypes: Annotated[str, typer.Option(metavar="D,D,…", help="float32, bfloat16, float16.")] = "float32",
    backends: Annotated[
        str,
        typer.Option(
            metavar="B,B,…",
            help="eager, sdpa, flex_attention, each against the stock model with the same; dense-eager: a bias held "
            "as heads × length × length and added in eager attention, against the stock model with sdpa.",
        ),
    ] = "sdpa",
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu or cuda; by default CUDA where there is one.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Texts read at once.")] = 1,
    layers: Annotated[
        int | None, typer.Option(help="Keep the first layers only, for long texts: ratios change little.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often stock and swapped model run in turn.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; by default its own choice.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of random weights and inputs.")] = 0,
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

    from hf_posswap.benchmarking import Settings, run
    from hf_posswap.benchmarking.files import read_rows, write_bench
    from hf_posswap.benchmarking.runner import check_device
    from hf_posswap.commands.counting import count_progress
    from hf_posswap.results.files import prepare_folder

    settings = Settings(
        model=model,
        schemes=tuple(split_list(schemes)),
        lengths=tuple(parse_numbers(lengths, "--lengths")),
        modes=tuple(split_list(modes)),
        dtypes=tuple(split_list(dtypes)),
        backends=tuple(split_list(backends)),
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        batch=batch,
        layers=layers,
        repeats=repeats,
        seed=seed,
    )
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

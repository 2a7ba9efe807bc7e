"""`hf-posswap evaluate`: all measurements of one model by length; also under `accelerate launch`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import (
    SCHEME_HELP,
    DocumentsOption,
    JsonOption,
    ModelArgument,
    interruptible,
    note_documents,
    parse_numbers,
    quiet_libraries,
    split_list,
)

WHAT, HOW, RUN = "What to measure", "How to measure it", "The run"


def evaluate(
    model: ModelArgument,
    text: Annotated[
        list[str],
        typer.Option(metavar="FILE", help="A UTF-8 text, or demo:books; repeatable.", rich_help_panel=WHAT),
    ],
    lengths: Annotated[
        str, typer.Option(metavar="N,N,…", help="Numbers of tokens to read at once.", rich_help_panel=WHAT)
    ],
    documents: DocumentsOption = None,
    pos_scheme: Annotated[
        str | None,
        typer.Option("--pos-scheme", metavar="SCHEME", help=f"Swap first. {SCHEME_HELP}", rich_help_panel=WHAT),
    ] = None,
    measure: Annotated[
        str,
        typer.Option(
            metavar="M,M,…",
            help="loss, positions, passkey; for encoders masked, retrieval. Default: all that fit the model.",
            rich_help_panel=WHAT,
        ),
    ] = "",
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="What was done to the model, for the files: stock, swapped, calibrated, healed or control. Default: "
            "what its config and the records beside it say.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="DIR", help="Where the result files go.", rich_help_panel=RUN)
    ] = Path("outputs/evaluate"),
    tokens: Annotated[
        int,
        typer.Option(
            help="loss, positions, masked: about how many tokens to read for each length.", rich_help_panel=HOW
        ),
    ] = 8192,
    bins: Annotated[
        int, typer.Option(help="positions: stretches that a window is divided into.", rich_help_panel=HOW)
    ] = 16,
    depths: Annotated[
        str, typer.Option(metavar="D,D,…", help="passkey: from 0 (beginning) to 1 (end).", rich_help_panel=HOW)
    ] = "0,0.25,0.5,0.75,1",
    trials: Annotated[
        int, typer.Option(help="passkey: keys for each depth and length; best a multiple of 10.", rich_help_panel=HOW)
    ] = 10,
    most_documents: Annotated[
        int, typer.Option(help="retrieval: at most so many documents.", rich_help_panel=HOW)
    ] = 100,
    document_tokens: Annotated[
        int | None,
        typer.Option(help="retrieval: tokens of a document. Default: the longest length.", rich_help_panel=HOW),
    ] = None,
    pooling: Annotated[
        str, typer.Option(metavar="mean|first", help="retrieval: what embeds a text.", rich_help_panel=HOW)
    ] = "mean",
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.", rich_help_panel=RUN)] = 0,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16.", rich_help_panel=RUN)
    ] = "float32",
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="cpu, cuda, …; by default CUDA where there is one.", rich_help_panel=RUN),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results and measure anew.", rich_help_panel=RUN)
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how far a model reads: loss by length and position, passkeys; masked tokens and retrieval in encoders.

    An interrupted evaluation goes on where it stopped when the same command is run again.
    """
    quiet_libraries()
    from hf_posswap.commands.evaluation_progress import evaluation_progress
    from hf_posswap.evaluation.processes import join_processes
    from hf_posswap.evaluation.run import prepare_evaluation, run_evaluation
    from hf_posswap.evaluation.settings import EvaluationSettings

    settings = EvaluationSettings(
        model=model,
        texts=tuple(text),
        lengths=tuple(parse_numbers(lengths, "--lengths")),
        pos_scheme=pos_scheme,
        measurements=tuple(split_list(measure)),
        stage=stage,
        tokens=tokens,
        seed=seed,
        dtype=dtype,
        device=device,
        bins=bins,
        depths=_parse_shares(depths, "--depths"),
        trials=trials,
        documents=documents,
        most_documents=most_documents,
        document_tokens=document_tokens,
        pooling=pooling,
    )
    processes = join_processes()
    prepared = prepare_evaluation(settings)
    if processes.is_main:
        note_documents("Measuring on", [len(ids) for text in prepared.texts for ids in text.ids])
    way_on = "The same command goes on where it stopped."
    with interruptible(lambda: way_on), evaluation_progress(processes.is_main) as observer:
        results = run_evaluation(prepared, output_dir, processes=processes, observer=observer, overwrite=overwrite)
    if processes.is_main:
        _report(results, output_dir, as_json)


def _report(results: dict[str, dict[str, Any]], output_dir: Path, as_json: bool) -> None:
    if as_json:
        from hf_posswap.results.writing import to_json

        typer.echo(to_json(results), nl=False)
    else:
        from hf_posswap.commands.evaluation_tables import print_results

        print_results(results)
    typer.echo("\nWrote:", err=as_json)
    for name in results:
        for ending in ("csv", "json"):
            typer.echo(f"  {output_dir / f'{name}.{ending}'}", err=as_json)


def _parse_shares(values: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in split_list(values))
    except ValueError as error:
        raise typer.BadParameter(
            f"{values!r} is no list of numbers. Write it as 0,0.5,1.", param_hint=option
        ) from error

"""`hf-posswap evaluate`: all measurements of one model by length; also under `accelerate launch`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import JsonOption, interruptible, note_documents, quiet_libraries
from hf_posswap.commands.generated import takes
from hf_posswap.evaluation.settings import RUN, EvaluationSettings


@takes(EvaluationSettings, "given", arguments=("model",))
def evaluate(
    *,
    given: dict[str, Any],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="DIR", help="Where the result files go.", rich_help_panel=RUN)
    ] = Path("outputs/evaluate"),
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
    from hf_posswap.evaluation.processes import joined_processes
    from hf_posswap.evaluation.run import prepare_evaluation, run_evaluation

    settings = EvaluationSettings(**given)
    with joined_processes() as processes:
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

"""`hf-posswap search`: which scheme, and which layers keep the old mechanism, for a model, a length and a budget."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import JsonOption, interruptible, note, note_documents, quiet_libraries
from hf_posswap.commands.generated import takes
from hf_posswap.commands.precision import PRECISION_HELP, precision_of_experiment
from hf_posswap.common.options import REQUIRED
from hf_posswap.experiments.settings import RUN, SearchSettings, recipe
from hf_posswap.training.options import HEALING, OF_EXPERIMENTS, RECIPE, HealingOptions


@takes(SearchSettings, "given", arguments=("model",))
@takes(
    HealingOptions,
    "healing",
    only=OF_EXPERIMENTS,
    names={"length": "--heal-length"},
    help={"tokens": "Number of healing tokens, of all candidates together.", "precision": PRECISION_HELP},
    defaults=RECIPE | {"precision": None, "tokens": REQUIRED},
    group=HEALING,
)
def search(
    *,
    given: dict[str, Any],
    healing: dict[str, Any],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir",
            metavar="DIR",
            help="Where results and the winner's model go; an interrupted search resumes from it.",
            rich_help_panel=RUN,
        ),
    ] = Path("outputs/search"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew in a folder that holds a search.", rich_help_panel=RUN)
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the best scheme for a model that is to read longer texts, within a budget of healing tokens.

    All candidates are calibrated; then they are healed in rounds, and the worse half is dropped after each round.
    """
    quiet_libraries()
    from hf_posswap.commands.progress import cell_progress
    from hf_posswap.experiments.search import run_search
    from hf_posswap.experiments.search_preparation import prepare_search
    from hf_posswap.experiments.search_record import WINNER, remove_search
    from hf_posswap.reporting.search_figure import draw_search
    from hf_posswap.results.files import prepare_folder, write_atomically
    from hf_posswap.results.kinds import SEARCH
    from hf_posswap.results.reading import read_result
    from hf_posswap.results.writing import to_json

    record = output_dir / f"{SEARCH.file}.json"
    earlier = None if overwrite else record
    healing["precision"] = precision_of_experiment(healing.get("precision"), given.get("device"), earlier)
    prepared = prepare_search(SearchSettings(**given, healing=recipe(**healing)))
    note_documents("Measuring on", [len(ids) for text in prepared.prepared.texts for ids in text.ids])
    note_documents("Learning from", *prepared.prepared.learning_lengths())
    for left in prepared.left_out:
        note(f"{left.scheme} is no candidate: {left.reason}.")
    if prepared.settings.hybrids and prepared.mixing_refusal is not None:
        note(f"There are no mixes: {prepared.mixing_refusal}.")
    prepare_folder(output_dir)
    if overwrite:
        remove_search(output_dir)
    way_on = f"The same command goes on from {record}."
    with interruptible(lambda: way_on), cell_progress(prepared) as observer:
        result = run_search(prepared, observer, output_dir)
    figure = write_atomically(record.with_suffix(".png"), lambda path: draw_search(read_result(record), path))
    if as_json:
        typer.echo(to_json(result), nl=False)
    else:
        from hf_posswap.commands.search_tables import print_result

        print_result(result)
    typer.echo("\nWrote:", err=as_json)
    for path in (record.with_suffix(".csv"), record, figure, output_dir / WINNER):
        typer.echo(f"  {path}", err=as_json)

"""`hf-posswap compare`: several schemes on one model, measured by length: swapped, calibrated and healed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import JsonOption, interruptible, note_documents, quiet_libraries
from hf_posswap.commands.generated import takes
from hf_posswap.commands.precision import PRECISION_HELP, precision_of_experiment
from hf_posswap.experiments.settings import ComparisonSettings, recipe
from hf_posswap.training.options import HEALING, OF_EXPERIMENTS, RECIPE, HealingOptions

NAMES = {"tokens": "--heal-tokens", "length": "--heal-length"}
"""Options of healing that have another name in this command."""


@takes(ComparisonSettings, "given")
@takes(
    HealingOptions,
    "healing",
    only=OF_EXPERIMENTS,
    names=NAMES,
    help={"tokens": "Also heal each swapped model on this number of tokens.", "precision": PRECISION_HELP},
    defaults=RECIPE | {"precision": None},
    group=HEALING,
)
def compare(
    *,
    given: dict[str, Any],
    healing: dict[str, Any],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir", metavar="DIR", help="The results folder; an interrupted comparison resumes from it."
        ),
    ] = Path("outputs/compare"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew in a folder that holds a comparison.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well a model reads, by length: as it is, and with each scheme swapped in, calibrated and healed."""
    quiet_libraries()
    from hf_posswap.commands.progress import cell_progress
    from hf_posswap.experiments.comparison import run
    from hf_posswap.experiments.preparation import prepare
    from hf_posswap.experiments.record import remove_record
    from hf_posswap.reporting.comparison_figure import draw_comparison
    from hf_posswap.results.files import prepare_folder, write_atomically
    from hf_posswap.results.kinds import COMPARISON
    from hf_posswap.results.reading import read_result
    from hf_posswap.results.writing import to_json

    if "tokens" in healing:
        earlier = None if overwrite else output_dir / "compare.json"
        healing["precision"] = precision_of_experiment(healing.get("precision"), given.get("device"), earlier)
        given["healing"] = recipe(**healing)
    else:
        _refuse_unread(
            {NAMES.get(name, f"--{name.replace('_', '-')}"): healing[name] for name in healing}, "--heal-tokens"
        )
    if not given.get("calibrate"):
        _refuse_unread({"--calibration-tokens": given.get("calibration_tokens")}, "--calibrate")
    settings = ComparisonSettings(**given)
    prepared = prepare(settings)
    note_documents("Measuring on", [len(ids) for text in prepared.texts for ids in text.ids])
    if prepared.documents:
        note_documents("Learning from", *prepared.learning_lengths())
    prepare_folder(output_dir)
    if overwrite:
        remove_record(output_dir)
    way_on = f"The same command goes on from {output_dir / 'compare.json'}."
    with interruptible(lambda: way_on), cell_progress(prepared) as observer:
        result = run(prepared, observer, output_dir)
    record = output_dir / f"{COMPARISON.file}.json"
    figure = write_atomically(record.with_suffix(".png"), lambda path: draw_comparison(read_result(record), path))
    if as_json:
        typer.echo(to_json(result), nl=False)
    else:
        from hf_posswap.commands.comparison_tables import print_result

        print_result(result)
    typer.echo("\nWrote:", err=as_json)
    for path in (record.with_suffix(".csv"), record, figure):
        typer.echo(f"  {path}", err=as_json)


def _refuse_unread(given: Mapping[str, object], switch: str) -> None:
    """Refuse options that have no effect without another option."""
    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(
                f"{value} has no effect without {switch}. Give {switch} too, or leave it out.",
                param_hint=name,
            )

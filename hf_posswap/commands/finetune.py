"""`hf-posswap finetune`: swap, calibrate and heal with Accelerate, with a control; also under `accelerate launch`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import JsonOption, interruptible, note, print_json, quiet_libraries
from hf_posswap.commands.generated import takes
from hf_posswap.commands.models import check_output
from hf_posswap.commands.precision import PRECISION_HELP, begun_precision, decide_precision
from hf_posswap.experiments.settings import Experiment
from hf_posswap.training.options import RUN, HealingOptions


@takes(Experiment, "given")
@takes(HealingOptions, "healing", help={"precision": PRECISION_HELP}, defaults={"precision": None})
def finetune(
    *,
    given: dict[str, Any],
    healing: dict[str, Any],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="DIR", help="Where the model, checkpoints and result go.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty.", rich_help_panel=RUN)
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Swap a scheme in, calibrate it, and heal the model: a fine-tune with little text whose teacher may be stock."""
    quiet_libraries()
    from hf_posswap.commands.healing_progress import healing_progress
    from hf_posswap.experiments.healing import run_experiment
    from hf_posswap.training.folders import require_room

    resume, adapter = given.get("resume", False), "lora_rank" in given
    healing["precision"] = _precision(healing.get("precision"), output_dir if resume else None)
    experiment = Experiment(**given, healing=HealingOptions(**healing))
    checkpoints = require_room(output_dir, resume, adapter)
    check_output(output_dir, overwrite or resume, adapter)
    if resume and not checkpoints:
        note(f"There is no checkpoint in {output_dir} to go on from: healing begins at the start.")
    with interruptible(lambda: _way_on(output_dir)), healing_progress() as observer:
        result = run_experiment(experiment, observer, output_dir)
    if observer.main:
        _report(result, output_dir, as_json)


def _precision(given: str | None, begun_in: Path | None) -> str:
    from hf_posswap.training.checkpoints import STATE, checkpoints_in
    from hf_posswap.training.distribution import expected_device

    checkpoints = [] if begun_in is None else checkpoints_in(begun_in)
    newest = checkpoints[-1] / STATE if checkpoints else None
    return decide_precision(given, expected_device(), begun_precision(newest, ("run", "options")))


def _way_on(output_dir: Path) -> str:
    from hf_posswap.training.checkpoints import checkpoints_in

    checkpoints = [path for folder in (output_dir, output_dir / "control") for path in checkpoints_in(folder)]
    if checkpoints:
        return f"The same command with --resume goes on from {checkpoints[-1]}."
    return "No checkpoint was written yet; --checkpoint-every sets how often one is written."


def _report(result: dict[str, Any], output_dir: Path, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    from hf_posswap.commands.healing_tables import print_result

    print_result(result)
    what = "healed model" if result["lora_rank"] is None else "adapter"
    typer.echo(f"Saved to {output_dir}: the {what}, its tokenizer, checkpoints and healing.json.")

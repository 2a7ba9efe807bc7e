"""`hf-posswap finetune`: swap, calibrate and heal with Accelerate, with a control; also under `accelerate launch`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import (
    SCHEME_HELP,
    DocumentsOption,
    JsonOption,
    interruptible,
    note,
    parse_numbers,
    print_json,
    quiet_libraries,
)
from hf_posswap.commands.generated import takes
from hf_posswap.commands.models import check_output
from hf_posswap.commands.precision import PRECISION_HELP, begun_precision, decide_precision
from hf_posswap.training.options import HEALING, RUN, TEXTS, HealingError, HealingOptions

EVALUATION_TOKENS = 16384
MEASURING = "Measuring"


@takes(HealingOptions, "healing", help={"precision": PRECISION_HELP}, defaults={"precision": None})
def finetune(
    *,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A folder, a Hub name, a GGUF file, or demo:gpt2, demo:bert, …")
    ],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="DIR", help="Where the model, checkpoints and result go.")
    ],
    pos_scheme: Annotated[
        str | None,
        typer.Option("--pos-scheme", metavar="SCHEME", help=f"{SCHEME_HELP} Not needed for a swapped model."),
    ] = None,
    stock: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where --model was healed before: the stock model, to teach and to compare."),
    ] = None,
    train_file: Annotated[
        list[str] | None,
        typer.Option("--train-file", metavar="FILE", help="A UTF-8 text; repeatable.", rich_help_panel=TEXTS),
    ] = None,
    documents: DocumentsOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A datasets dataset or folder, streamed.", rich_help_panel=TEXTS),
    ] = None,
    dataset_split: Annotated[
        str | None, typer.Option(help="Its split, by default train.", rich_help_panel=TEXTS)
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Its column of texts, by default text.", rich_help_panel=TEXTS)
    ] = None,
    healing: dict[str, Any],
    lora_rank: Annotated[
        int | None,
        typer.Option(help="Train adapters of this rank, and the scheme, not the weights.", rich_help_panel=HEALING),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Fit the scheme to the old weights first, if it can be.", rich_help_panel=HEALING)
    ] = True,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to calibrate on. Default: 8192.", rich_help_panel=HEALING),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR.", rich_help_panel=RUN)
    ] = False,
    history: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON with every step; healing.json has a few of them.", rich_help_panel=RUN),
    ] = None,
    log_with: Annotated[
        str | None, typer.Option(metavar="TRACKER", help="tensorboard, wandb, …", rich_help_panel=RUN)
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Heal the unswapped model in the same way.", rich_help_panel=MEASURING)
    ] = False,
    eval_file: Annotated[
        list[str] | None,
        typer.Option(
            "--eval-file", metavar="FILE", help="A text to measure on; repeatable.", rich_help_panel=MEASURING
        ),
    ] = None,
    eval_lengths: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Tokens to read at once then.", rich_help_panel=MEASURING),
    ] = None,
    eval_tokens: Annotated[
        int | None,
        typer.Option(
            help=f"About how many tokens to read at each length. Default: {EVALUATION_TOKENS}.",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty.", rich_help_panel=RUN)
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Swap a scheme in, calibrate it, and heal the model: a fine-tune with little text whose teacher may be stock."""
    quiet_libraries()
    from hf_posswap.commands.healing_progress import healing_progress
    from hf_posswap.experiments.healing import Experiment, run_experiment
    from hf_posswap.training.documents import from_dataset, from_files, require_apart
    from hf_posswap.training.folders import require_room

    healing["precision"] = _precision(healing.get("precision"), output_dir if resume else None)
    options = HealingOptions(**healing)
    if (dataset is None) == (not train_file):
        raise HealingError("give the text to heal on: either --train-file FILE or --dataset NAME.")
    for name, value in (("--eval-lengths", eval_lengths), ("--eval-tokens", eval_tokens)):
        if value is not None and not eval_file:
            raise HealingError(f"{name} {value} says how to measure: give a text for it too, --eval-file FILE.")
    for name, value in (("--dataset-split", dataset_split), ("--text-column", text_column)):
        if value is not None and dataset is None:
            raise HealingError(f"{name} {value} is of a dataset: give --dataset NAME, or leave it out.")
    checkpoints = require_room(output_dir, resume, adapter=lora_rank is not None)
    check_output(output_dir, "float32", overwrite or resume, adapter=lora_rank is not None)
    if resume and not checkpoints:
        note(f"There is no checkpoint in {output_dir} to go on from: healing begins at the start.")
    column = text_column or "text"
    measured = from_files(eval_file or [], documents)
    if dataset is not None:
        texts, facts = from_dataset(dataset, dataset_split or "train", column)
    else:
        learned = from_files(train_file or [], documents)
        require_apart(measured, learned)
        texts, facts = learned
    experiment = Experiment(
        model=model,
        pos_scheme=pos_scheme,
        stock=stock,
        documents=texts,
        texts=facts,
        options=options,
        output_dir=output_dir,
        calibrate=calibrate,
        calibration_tokens=calibration_tokens,
        lora_rank=lora_rank,
        control=control,
        evaluation=tuple(measured[0]),
        evaluation_texts=tuple(measured[1]),
        lengths=() if eval_lengths is None else tuple(parse_numbers(eval_lengths, "--eval-lengths")),
        evaluation_tokens=EVALUATION_TOKENS if eval_tokens is None else eval_tokens,
        resume=resume,
        column=column,
        history=history,
        log_with=log_with,
    )
    with interruptible(lambda: _way_on(output_dir)), healing_progress() as observer:
        result = run_experiment(experiment, observer)
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
    return "It was before the first checkpoint; --checkpoint-every says how often one is written."


def _report(result: dict[str, Any], output_dir: Path, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    from hf_posswap.commands.healing_tables import print_result

    print_result(result)
    what = "healed model" if result["lora_rank"] is None else "adapter"
    typer.echo(f"Saved to {output_dir}: the {what}, its tokenizer, checkpoints and healing.json.")

"""`hf-posswap finetune`: swap, calibrate, heal with Accelerate, and the control; runs under `accelerate launch` too."""

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
from hf_posswap.commands.models import check_output
from hf_posswap.commands.precision import PRECISION_HELP, begun_precision, decide_precision

EVALUATION_TOKENS = 16384
HEALING, TEXTS, MEASURING, RUN = "How to heal", "What to heal on", "Measuring", "The run"


def finetune(
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
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to heal on; or give --steps.", rich_help_panel=TEXTS)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", rich_help_panel=TEXTS)] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens read at once. Default: the train length, at most 512.", rich_help_panel=TEXTS),
    ] = None,
    shortest_length: Annotated[
        int | None,
        typer.Option(
            help="Encoders: texts of all lengths from this on. Default: 32 for embeddings.", rich_help_panel=TEXTS
        ),
    ] = None,
    dropout: Annotated[
        bool | None,
        typer.Option(help="Drop out as the model's config says. Default: not with --distill.", rich_help_panel=HEALING),
    ] = None,
    packing: Annotated[
        bool | None,
        typer.Option(help="Several documents in a window, masked from each other.", rich_help_panel=TEXTS),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows a process reads at once.", rich_help_panel=HEALING)] = 8,
    accumulation: Annotated[int, typer.Option(help="Batches that make one step.", rich_help_panel=HEALING)] = 1,
    objective: Annotated[
        str | None,
        typer.Option(metavar="lm|mlm|embedding", help="Default: what the head is for.", rich_help_panel=HEALING),
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Learn from the stock model's outputs.", rich_help_panel=HEALING)
    ] = False,
    distill_weight: Annotated[
        float | None,
        typer.Option(help="Their weight, by default 1; the rest is the objective's own loss.", rich_help_panel=HEALING),
    ] = None,
    ramp: Annotated[
        bool, typer.Option("--ramp", help="Fade the old mechanism out, the new one in.", rich_help_panel=HEALING)
    ] = False,
    ramp_share: Annotated[
        float | None,
        typer.Option(help="Share of the steps that the fading takes, by default 0.5.", rich_help_panel=HEALING),
    ] = None,
    train: Annotated[
        str, typer.Option(metavar="all|scheme", help="All weights, or the scheme's only.", rich_help_panel=HEALING)
    ] = "all",
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
    learning_rate: Annotated[
        float,
        typer.Option(
            help="Peak, for the weights; 0.001 heals more where calibration cannot fit the scheme.",
            rich_help_panel=HEALING,
        ),
    ] = 3e-4,
    scheme_learning_rate: Annotated[
        float, typer.Option(help="Peak, for the scheme's parameters.", rich_help_panel=HEALING)
    ] = 1e-2,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.", rich_help_panel=HEALING)] = 0.01,
    warmup: Annotated[
        float,
        typer.Option(help="Share of the steps in which the rate rises (3 or more).", rich_help_panel=HEALING),
    ] = 0.05,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.", rich_help_panel=HEALING)] = 1.0,
    precision: Annotated[str | None, typer.Option(metavar="no|bf16", help=PRECISION_HELP, rich_help_panel=RUN)] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=RUN)
    ] = False,
    seed: Annotated[int, typer.Option(help="Of order, masks and dropout.", rich_help_panel=RUN)] = 0,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: none.", rich_help_panel=RUN)
    ] = 200,
    keep_checkpoints: Annotated[int, typer.Option(help="How many stay.", rich_help_panel=RUN)] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR.", rich_help_panel=RUN)
    ] = False,
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
    from hf_posswap.training.documents import from_dataset, from_files, require_apart
    from hf_posswap.training.experiment import Experiment, run_experiment
    from hf_posswap.training.folders import require_room
    from hf_posswap.training.options import HealingError, HealingOptions

    # What is typed may be any text: HealingOptions checks it, in words, where typing would want a Literal.
    options = HealingOptions(
        tokens=tokens,
        steps=steps,
        length=length,
        shortest_length=shortest_length,
        batch_size=batch_size,
        accumulation=accumulation,
        objective=objective,  # type: ignore[arg-type]
        distill=_with_switch("--distill-weight", distill_weight, "--distill", distill, 1.0),
        ramp=_with_switch("--ramp-share", ramp_share, "--ramp", ramp, 0.5),
        train=train,  # type: ignore[arg-type]
        learning_rate=learning_rate,
        scheme_learning_rate=scheme_learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        precision=_precision(precision, output_dir if resume else None),  # type: ignore[arg-type]
        gradient_checkpointing=gradient_checkpointing,
        dropout=dropout,
        packing=packing,
        seed=seed,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
    )
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
        log_with=log_with,
    )
    with interruptible(lambda: _way_on(output_dir)), healing_progress() as observer:
        result = run_experiment(experiment, observer)
    if observer.main:
        _report(result, output_dir, as_json)


def _with_switch(name: str, given: float | None, switch: str, on: bool, default: float) -> float:
    """Return how much of something there is: 0 if its switch is off, and then no number may be given for it."""
    if given is not None and not on:
        from hf_posswap.training.options import HealingError

        raise HealingError(f"{name} {given:g} says how much of {switch} there is: give {switch} too, or leave it out.")
    return (default if given is None else given) if on else 0.0


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

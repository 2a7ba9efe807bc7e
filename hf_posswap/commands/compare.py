"""`hf-posswap compare`: several schemes on one model, measured by length: swapped, calibrated and healed."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_posswap.commands.console import (
    SCHEME_HELP,
    DocumentsOption,
    JsonOption,
    interruptible,
    note_documents,
    parse_numbers,
    quiet_libraries,
    split_list,
)
from hf_posswap.commands.generated import takes
from hf_posswap.commands.precision import PRECISION_HELP, begun_precision, decide_precision
from hf_posswap.training.options import HEALING, RECIPE, HealingOptions

if TYPE_CHECKING:
    from hf_posswap.commands.progress import LineObserver
    from hf_posswap.experiments.preparation import Prepared

LEARNING = "What else to measure"
NAMES = {"length": "--heal-length", "distill": "--distill-weight"}
"""Options of the recipe that have another name in this command."""


@takes(
    HealingOptions,
    "recipe",
    only=("length", "precision", *RECIPE),
    names=NAMES,
    help={"precision": PRECISION_HELP},
    defaults=RECIPE | {"precision": None},
    group=HEALING,
)
def compare(
    *,
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="A folder, a Hub name, a GGUF file, or demo:gpt2, demo:bert, demo:llama."),
    ],
    schemes: Annotated[str, typer.Option(metavar="S,S,…", help=f"Schemes, separated by commas. {SCHEME_HELP}")],
    text: Annotated[
        list[str], typer.Option(metavar="FILE", help="A UTF-8 text, or demo:books. May be given several times.")
    ],
    lengths: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of tokens to read at once.")],
    documents: DocumentsOption = None,
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir", metavar="DIR", help="The results folder; an interrupted comparison goes on from there."
        ),
    ] = Path("outputs/compare"),
    tokens: Annotated[
        int, typer.Option(metavar="N", help="About how many tokens to read for each length, protocol and point.")
    ] = 8192,
    seed: Annotated[int, typer.Option(help="Of the bootstrap, of healing, and of schemes that start at random.")] = 0,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, …; by default CUDA where there is one.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew in a folder that holds a comparison.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Also fit each scheme to the old weights.", rich_help_panel=LEARNING),
    ] = False,
    heal_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Also heal each on so many tokens.", rich_help_panel=LEARNING),
    ] = None,
    control: Annotated[
        bool,
        typer.Option("--control", help="Also heal the stock model on the same tokens.", rich_help_panel=LEARNING),
    ] = False,
    train_file: Annotated[
        list[str] | None,
        typer.Option(
            "--train-file",
            metavar="FILE",
            help="A text to calibrate and heal on, or demo:books/train; repeatable.",
            rich_help_panel=LEARNING,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="How many seeds, counted up from --seed.", rich_help_panel=LEARNING)
    ] = 1,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens to calibrate on. Default: 8192.", rich_help_panel=LEARNING),
    ] = None,
    recipe: dict[str, Any],
    as_json: JsonOption = False,
) -> None:
    """Measure how well a model reads, by length: as it is, and with each scheme swapped in, calibrated and healed."""
    quiet_libraries()
    from hf_posswap.experiments.comparison import run
    from hf_posswap.experiments.preparation import prepare
    from hf_posswap.experiments.record import remove_comparison
    from hf_posswap.experiments.settings import CALIBRATION_TOKENS, Settings
    from hf_posswap.experiments.settings import recipe as recipe_of
    from hf_posswap.reporting.comparison_figure import draw_comparison
    from hf_posswap.results.files import prepare_folder, write_atomically
    from hf_posswap.results.kinds import COMPARISON
    from hf_posswap.results.reading import read_result
    from hf_posswap.results.writing import to_json

    healing = None
    if heal_tokens is None:
        typed = {NAMES.get(name, f"--{name.replace('_', '-')}"): value for name, value in recipe.items()}
        _refuse_unread(typed, "--heal-tokens")
    else:
        earlier = None if overwrite else output_dir / "compare.json"
        recipe["precision"] = _precision(recipe.get("precision"), device, earlier)
        healing = recipe_of(heal_tokens, **recipe)
    if not calibrate:
        _refuse_unread({"--calibration-tokens": calibration_tokens}, "--calibrate")
    settings = Settings(
        model=model,
        schemes=tuple(split_list(schemes)),
        texts=tuple(text),
        lengths=tuple(parse_numbers(lengths, "--lengths")),
        documents=documents,
        tokens=tokens,
        seed=seed,
        seeds=seeds,
        dtype=_checked_dtype(dtype),
        device=device,
        train_texts=tuple(train_file or ()),
        calibrate=calibrate,
        calibration_tokens=CALIBRATION_TOKENS if calibration_tokens is None else calibration_tokens,
        healing=healing,
        control=control,
    )
    prepared = prepare(settings)
    note_documents("Measuring on", [len(ids) for text in prepared.texts for ids in text.ids])
    if prepared.documents:
        note_documents("Learning from", *prepared.learning_lengths())
    prepare_folder(output_dir)
    if overwrite:
        remove_comparison(output_dir)
    way_on = f"The same command goes on from {output_dir / 'compare.json'}."
    with interruptible(lambda: way_on), _progress(prepared) as observer:
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
                f"{value} says how, and nothing is done without {switch}. Give {switch} too, or leave it out.",
                param_hint=name,
            )


def _precision(given: str | None, device: str | None, earlier: Path | None) -> str:
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return decide_precision(given, device, begun_precision(earlier, ("settings", "healing")))


@contextlib.contextmanager
def _progress(prepared: "Prepared") -> "Iterator[LineObserver]":
    """Show progress on stderr: a bar on a terminal, otherwise some lines."""
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

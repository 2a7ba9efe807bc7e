"""`hf-posswap bias`: the bias of each scheme by distance and head, before and after calibration."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_posswap.commands.console import ModelArgument, note, note_documents, print_table
from hf_posswap.commands.generated import takes
from hf_posswap.evaluation.settings import BiasSettings
from hf_posswap.experiments.settings import CalibrationOptions

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = (0, 1, 2, 4, 16, 64, 256, 1024)


@takes(BiasSettings, "given")
@takes(
    CalibrationOptions,
    "calibration",
    only=("texts", "documents", "tokens", "length"),
    help={
        "texts": "A text to calibrate on, to write the bias after calibration too; repeatable.",
        "tokens": "Number of tokens to calibrate on.",
    },
    defaults={"texts": ()},
)
def bias(
    *,
    model: ModelArgument,
    given: dict[str, Any],
    calibration: dict[str, Any],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="DIR", help="Where biases.csv and biases.json are written.")
    ] = Path("outputs/bias"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the biases that DIR has already.")] = False,
) -> None:
    """Write down the bias of each head by distance (of RoPE: what its angles leave), for hf-posswap report."""
    from hf_posswap.results.files import OutputError, prepare_folder
    from hf_posswap.results.kinds import BIASES
    from hf_posswap.results.writing import make_result, write_result

    settings, options = BiasSettings(**given), CalibrationOptions(model=model, **{"texts": ()} | calibration)
    if (output_dir / "biases.json").exists() and not overwrite:
        raise OutputError(f"{str(output_dir)!r} has biases.json already. Give another folder, or --overwrite.")
    prepare_folder(output_dir)
    specifications = _checked_schemes(model, list(settings.schemes))
    batches, texts = _read(options)
    rows: list[dict[str, Any]] = []
    for specification in specifications:
        rows += _rows(model, specification, settings, batches)
    result = make_result(
        BIASES,
        rows,
        model=model,
        seed=settings.seed,
        settings={
            "schemes": specifications,
            "longest": settings.longest,
            "tokens": options.tokens,
            "length": options.length,
        },
        texts=texts,
    )
    files = write_result(result, output_dir)
    _print(rows)
    typer.echo("\nWrote:")
    for path in files:
        typer.echo(f"  {path}")


def _checked_schemes(model: str, schemes: list[str]) -> list[str | None]:
    """Return the schemes to swap in; None stands for the scheme of a model that is already swapped.

    Raises:
        PosSwapError: an unknown scheme, schemes for a model that is already swapped, or no scheme for a stock model.
    """
    from hf_posswap.evaluation.errors import EvaluationError
    from hf_posswap.schemes import parse_scheme
    from hf_posswap.sources import load_config

    for scheme in schemes:
        parse_scheme(scheme)
    swapped = getattr(load_config(model), "pos_scheme", None) is not None
    if swapped and schemes:
        raise EvaluationError(f"model {model!r} is swapped already: leave out --schemes to see what it has.")
    if not swapped and not schemes:
        raise EvaluationError(f"model {model!r} is a stock model: name schemes to swap in, with --schemes alibi,t5.")
    return [None] if swapped else list(schemes)


def _read(options: CalibrationOptions) -> "tuple[list[Tensor], list[dict[str, Any]]]":
    """Return calibration batches, and their texts as a result file stores them."""
    if not options.texts:
        return [], []
    from hf_posswap.commands.calibrate import read_batches
    from hf_posswap.sources import load_config, load_tokenizer
    from hf_posswap.texts.files import read_files

    files = read_files(options.texts, options.documents)
    limit = getattr(load_config(options.model), "max_position_embeddings", options.length)
    batches = read_batches(load_tokenizer(options.model), files, options.tokens, min(options.length, limit))
    note_documents("Calibrating on", [batch.shape[1] for batch in batches])
    each = sum(batch.numel() for batch in batches) // len(files)
    return batches, [file.to_dict() | {"tokens": each} for file in files]


def _rows(model: str, scheme: str | None, settings: BiasSettings, batches: "list[Tensor]") -> list[dict[str, Any]]:
    """Return the rows of one scheme after the swap and, if there are texts and parameters to fit, after calibration."""
    import torch

    from hf_posswap.calibration import calibrate, calibration_refusal
    from hf_posswap.commands.counting import count_progress
    from hf_posswap.commands.models import load_swapped
    from hf_posswap.evaluation.bias_by_distance import bias_by_distance
    from hf_posswap.results.records import stage_of

    torch.manual_seed(settings.seed)
    loaded = load_swapped(model, scheme, "float32")
    name = scheme or loaded.config.pos_scheme["name"]
    sample = max(batches, key=lambda batch: batch.shape[1]) if batches else None

    def labelled(done: str) -> Iterable[dict[str, Any]]:
        shared = {"model": model, "scheme": name, "stage": done, "seed": settings.seed}
        return (shared | row for row in bias_by_distance(loaded, settings.longest, sample))

    rows = list(labelled(settings.stage or ("swapped" if scheme else stage_of(loaded.config, model))))
    if not batches or scheme is None:
        return rows
    refusal = calibration_refusal(loaded)
    if refusal is not None:
        note(f"{name}: {refusal}")
        return rows
    with count_progress(f"calibrating {name}", "layer") as progress:
        calibrate(loaded, batches, progress, measure=False)
    return [*rows, *labelled("calibrated")]


def _print(rows: list[dict[str, Any]]) -> None:
    """Print the mean over heads and layers at some distances, for each scheme and stage."""
    found: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for row in rows:
        cells = found.setdefault((row["scheme"], row["stage"], row["quantity"]), {})
        if row["value"] is not None:
            cells.setdefault(row["distance"], []).append(row["value"])
    distances = [distance for distance in SHOWN if any(distance in cells for cells in found.values())]
    body = [
        (*names, *(f"{sum(cells[d]) / len(cells[d]):.2f}" if d in cells else "—" for d in distances))
        for names, cells in found.items()
    ]
    columns = [f"Δ = {distance}" for distance in distances]
    print_table("Mean over layers and heads, by distance", ("scheme", "stage", "quantity", *columns), body, columns)
    for message in dict.fromkeys(f"{row['scheme']}: {row['note']}" for row in rows if row["note"]):
        typer.echo(f"— {message}")

"""`hf-posswap calibrate`: swap a scheme in, start it from what the old weights know, and save it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_posswap.commands.console import SCHEME_HELP, JsonOption, ModelArgument, print_json, print_table
from hf_posswap.commands.models import DtypeOption, check_output, load_swapped, save

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_posswap.calibration import CalibrationReport
    from hf_posswap.training import HealingReport
    from hf_posswap.training.options import Precision


def calibrate(
    model: ModelArgument,
    pos_scheme: Annotated[str, typer.Option("--pos-scheme", metavar="SCHEME", help=SCHEME_HELP)],
    text: Annotated[list[str], typer.Option("--text", metavar="FILE", help="Text to calibrate on; repeatable.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", metavar="DIR", help="Where to save the model.")],
    tokens: Annotated[int, typer.Option(help="Tokens to read.", min=2)] = 8192,
    length: Annotated[int, typer.Option(help="Tokens read at once; at most the train length.", min=2)] = 512,
    refine_tokens: Annotated[
        int,
        typer.Option(
            help="Then train the scheme's parameters alone on this many tokens, against the stock model's outputs.",
            min=0,
        ),
    ] = 0,
    precision: Annotated[
        str | None, typer.Option(metavar="no|bf16", help="bf16: compute so while training them. Default: no.")
    ] = None,
    dtype: DtypeOption = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Save into a folder that is not empty.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Swap a scheme in, fit its parameters to the old model's attention without any training, and save the model."""
    check_output(output_dir, dtype, overwrite)
    computing = _precision(precision, refine_tokens)
    swapped = load_swapped(model, pos_scheme, dtype)
    from hf_posswap.calibration import calibrate as fit
    from hf_posswap.commands.counting import count_progress
    from hf_posswap.swapped.questions import train_length

    batches = read_batches(model, text, tokens, min(length, train_length(swapped)))
    with count_progress("calibrating", "layer") as progress:
        report = fit(swapped, batches, progress)
    refined = _refine(swapped, model, text, refine_tokens, computing) if refine_tokens else None
    if as_json:
        print_json(asdict(report) | {"refinement": None if refined is None else refined.to_dict()})
    else:
        _print_report(report)
        if refined is not None:
            _print_refinement(refined)
    save(swapped, model, output_dir, {"calibration.json": _record(report, refined, text)})


def _precision(given: str | None, refine_tokens: int) -> "Precision":
    """Return in what the second stage computes; refuse what it cannot, and what would not be used."""
    from hf_posswap.training.options import HealingError, HealingOptions

    # What is typed may be any text: HealingOptions checks it, in words, where typing would want a Literal.
    precision = HealingOptions(steps=1, precision=given or "no").precision  # type: ignore[arg-type]
    if given is not None and refine_tokens == 0:
        raise HealingError(f"--precision {given} is for the second stage: give --refine-tokens too, or leave it out.")
    return precision


def _record(report: "CalibrationReport", refined: "HealingReport | None", texts: list[str]) -> dict[str, Any]:
    from hf_posswap.training import from_files

    return {
        "kind": "calibration",
        "texts": from_files(texts)[1],
        "report": asdict(report),
        "refinement": None if refined is None else refined.to_dict(),
    }


def _refine(
    swapped: "PreTrainedModel", model: str, texts: list[str], tokens: int, precision: "Precision"
) -> "HealingReport":
    from hf_posswap.commands.counting import count_progress
    from hf_posswap.demo import load_tokenizer
    from hf_posswap.training import from_files, refine

    documents, _ = from_files(texts)
    with count_progress("refining", "step") as progress:
        return refine(
            swapped,
            documents,
            load_tokenizer(model),
            tokens,
            precision=precision,
            progress=progress,
        )


def read_batches(model: str, texts: list[str], tokens: int, length: int) -> "list[Tensor]":
    """Return about `tokens` tokens of the texts, shared among them, as batches (1, length); fewer at once if need be.

    Raises:
        CalibrationError: a text that is read is shorter than one window; says how many tokens it has.
    """
    from hf_posswap.calibration import text_windows
    from hf_posswap.demo import load_tokenizer, resolve_texts

    tokenizer = load_tokenizer(model)
    sources = [source for name in texts for source in resolve_texts(name)]
    length = min(length, tokens)
    windows, of = tokens // length, len(sources)
    shares = [windows * (place + 1) // of - windows * place // of for place in range(of)]
    return [
        window
        for source, share in zip(sources, shares, strict=True)
        if share
        for window in text_windows(tokenizer, source.read(), length, source.name)[:share]
    ]


def _print_refinement(report: "HealingReport") -> None:
    first, last = (report.history[place]["loss"] for place in (0, -1))
    print_table(
        f"Distance to the stock model's outputs over {report.tokens} tokens of refinement (the objective's units)",
        ["first step", "last step"],
        [(f"{first:.4f}", f"{last:.4f}")],
        right=["first step", "last step"],
    )


def _print_report(report: "CalibrationReport") -> None:
    if report.loss_stock is not None and report.loss_before is not None and report.loss_after is not None:
        rows = [("stock", report.loss_stock), ("swapped", report.loss_before), ("calibrated", report.loss_after)]
        print_table(
            f"Loss on the {report.tokens} tokens of calibration, in nats a token",
            ["model", "loss", "above stock"],
            [(name, f"{loss:.3f}", f"{loss - report.loss_stock:+.3f}") for name, loss in rows],
            right=["loss", "above stock"],
        )
    worst = [(str(layer), str(head), f"{share:.0%}") for layer, head, share in report.worst_heads(5)]
    print_table("Heads that a bias by distance explains least", ["layer", "head", "explained"], worst, ["explained"])

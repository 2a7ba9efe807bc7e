"""`hf-posswap calibrate`: swap a scheme in, calibrate it, and save the model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_posswap.commands.console import JsonOption, note_documents, print_json, print_table
from hf_posswap.commands.generated import takes
from hf_posswap.commands.models import check_output, load_swapped, save
from hf_posswap.common.options import REQUIRED
from hf_posswap.experiments.settings import CalibrationOptions
from hf_posswap.training.options import HealingError, HealingOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_posswap.calibration import CalibrationReport
    from hf_posswap.texts.files import TextFile
    from hf_posswap.training import HealingReport
    from hf_posswap.training.options import Precision


@takes(CalibrationOptions, "given", arguments=("model",), defaults={"pos_scheme": REQUIRED})
@takes(
    HealingOptions,
    "healing",
    only=("precision",),
    help={"precision": "bf16: compute so while training the scheme's parameters."},
    group="Options",
)
def calibrate(
    *,
    given: dict[str, Any],
    healing: dict[str, Any],
    output_dir: Annotated[Path, typer.Option("--output-dir", metavar="DIR", help="Where to save the model.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Save into a folder that is not empty.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Swap a scheme in, fit its parameters to the old model's attention without any training, and save the model."""
    options = CalibrationOptions(**given)
    check_output(output_dir, overwrite)
    precision = HealingOptions(steps=1, **healing).precision
    if healing and not options.refine_tokens:
        raise HealingError(
            f"--precision {precision} is for the second stage: give --refine-tokens too, or leave it out."
        )
    swapped = load_swapped(options.model, options.pos_scheme, options.dtype)
    from hf_posswap.calibration import calibrate as fit
    from hf_posswap.calibration import tokens_to_read
    from hf_posswap.commands.counting import count_progress
    from hf_posswap.sources import load_tokenizer
    from hf_posswap.swapped.questions import train_length
    from hf_posswap.texts.files import read_files

    files, tokenizer = read_files(options.texts, options.documents), load_tokenizer(options.model)
    length = min(options.length, train_length(swapped), options.tokens)
    batches = read_batches(tokenizer, files, tokens_to_read(options.tokens, length), length)
    note_documents("Calibrating on", [batch.shape[1] for batch in batches])
    with count_progress("calibrating", "layer") as progress:
        report = fit(swapped, batches, progress, tokenizer=tokenizer)
    refined = None
    if options.refine_tokens:
        refined = _refine(swapped, tokenizer, files, options.refine_tokens, precision)
    if as_json:
        print_json(asdict(report) | {"refinement": None if refined is None else refined.to_dict()})
    else:
        _print_report(report)
        if refined is not None:
            _print_refinement(refined)
    save(swapped, options.model, output_dir, {"calibration.json": _record(report, refined, files)})


def _record(report: "CalibrationReport", refined: "HealingReport | None", files: "list[TextFile]") -> dict[str, Any]:
    return {
        "kind": "calibration",
        "texts": [file.to_dict() for file in files],
        "report": asdict(report),
        "refinement": None if refined is None else refined.to_dict(),
    }


def _refine(
    swapped: "PreTrainedModel", tokenizer: Any, files: "list[TextFile]", tokens: int, precision: "Precision"
) -> "HealingReport":
    from hf_posswap.commands.counting import count_progress
    from hf_posswap.training import refine

    documents = [document for file in files for document in file.documents]
    with count_progress("refining", "step") as progress:
        return refine(swapped, documents, tokenizer, tokens, precision=precision, progress=progress)


def read_batches(tokenizer: Any, files: "Sequence[TextFile]", tokens: int, length: int) -> "list[Tensor]":
    """Return about `tokens` tokens, divided among the files, as batches of one window of a document, (1, L).

    A file with one document gives its first windows; a file with many documents gives evenly spread ones.

    Raises:
        CalibrationError: a file has fewer tokens than one window; the message gives their number.
    """
    from hf_posswap.calibration import document_windows

    length = min(length, tokens)
    windows, of = tokens // length, len(files)
    shares = [windows * (place + 1) // of - windows * place // of for place in range(of)]
    return [
        window
        for file, share in zip(files, shares, strict=True)
        if share
        for window in _some(document_windows(tokenizer, file.documents, length, file.name), share, length, file)
    ]


def _some(windows: "list[Tensor]", share: int, length: int, file: "TextFile") -> "list[Tensor]":
    """Return windows with about as many tokens as `share` full ones."""
    if len(file.documents) == 1:
        return windows[:share]
    count = min(len(windows), max(1, round(share * length * len(windows) / sum(w.shape[1] for w in windows))))
    return [windows[place * len(windows) // count] for place in range(count)]


def _print_refinement(report: "HealingReport") -> None:
    first, last = (report.history[place]["loss"] for place in (0, -1))
    print_table(
        f"Distance to the stock model's outputs over {report.tokens} tokens of refinement (the objective's units)",
        ["first step", "last step"],
        [(f"{first:.4f}", f"{last:.4f}")],
        right=["first step", "last step"],
    )


def _print_report(report: "CalibrationReport") -> None:
    assert report.loss_stock is not None
    assert report.loss_after is not None
    after = "calibrated (not kept)" if report.kept_start else "calibrated"
    swapped = [] if report.loss_before is None else [("swapped", report.loss_before)]  # None: it could not run before
    rows = [("stock", report.loss_stock), *swapped, (after, report.loss_after)]
    where = f"{report.held_back} tokens held back" if report.held_back else f"the {report.tokens} tokens of calibration"
    if report.quantity == "agreement":
        print_table(
            f"Cosine of text embeddings to the stock model's, on {where}",
            ["model", "cosine"],
            [(name, f"{1 - loss:.3f}") for name, loss in rows],
            right=["cosine"],
        )
    else:
        each = "a masked token" if report.quantity == "masked loss" else "a token"
        print_table(
            f"Loss on {where}, in nats {each}",
            ["model", "loss", "above stock"],
            [(name, f"{loss:.3f}", f"{loss - report.loss_stock:+.3f}") for name, loss in rows],
            right=["loss", "above stock"],
        )
    worst = [(str(layer), str(head), f"{share:.0%}") for layer, head, share in report.worst_heads(5)]
    print_table("Heads that a bias by distance explains least", ["layer", "head", "explained"], worst, ["explained"])

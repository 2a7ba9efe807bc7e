"""`hf-posswap demo`: compare, bias and report in one command, on a small GPT-2 that comes with hf_posswap."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import note
from hf_posswap.commands.generated import takes
from hf_posswap.experiments.settings import ComparisonSettings
from hf_posswap.training.options import HealingOptions

SETTINGS = {
    "schemes": ("alibi:trainable=true:per_layer=true", "t5:per_layer=true", "rope", "sinusoidal"),
    "lengths": (128, 256, 512, 1024, 2048),
    "tokens": 4096,
}
"""ALiBi and T5 in the forms that calibration can fit: trainable slopes, and separate parameters for each layer."""
HEALING = {"tokens": 57344}


@takes(ComparisonSettings, "given", only=SETTINGS, defaults=SETTINGS, group="Options")
@takes(
    HealingOptions,
    "healing",
    only=HEALING,
    names={"tokens": "--heal-tokens"},
    help={"tokens": "Number of tokens to heal each model on."},
    defaults=HEALING,
    group="Options",
)
def demo(
    *,
    given: dict[str, Any],
    healing: dict[str, Any],
    output_dir: Annotated[
        Path,
        typer.Option("--output-dir", metavar="DIR", help="The results folder; an interrupted demo resumes from it."),
    ] = Path("outputs/demo"),
) -> None:
    """Swap, calibrate and heal a small GPT-2 with several schemes, measure how far each reads, and draw the report.

    Takes some minutes, and no network. In a clone of the repository it measures on two books and heals on fifty
    excerpts; elsewhere on the book and the excerpt that are installed with hf_posswap.
    """
    from hf_posswap.commands.bias import bias
    from hf_posswap.commands.compare import compare
    from hf_posswap.commands.report import report
    from hf_posswap.texts.sources import EXCERPT_NAME, MEASURING_NAME, TRAINING_NAME, has_clone

    measured, learnt, fitted = MEASURING_NAME, EXCERPT_NAME, EXCERPT_NAME
    if has_clone():
        measured, learnt, fitted = "demo:books", TRAINING_NAME, "demo:book/train"
    else:
        note(f"This measures on {measured} and heals on {learnt}; a clone of the repository has more books.")
    settings = SETTINGS | given
    compare(
        model="demo:gpt2",
        **settings,
        text=[measured],
        output_dir=output_dir,
        calibrate=True,
        heal_tokens=(HEALING | healing)["tokens"],
        batch_size=8,
        control=True,
        train_file=[learnt],
    )
    bias(model="demo:gpt2", schemes=settings["schemes"], text=[fitted], output_dir=output_dir, overwrite=True)
    report(output_dir)

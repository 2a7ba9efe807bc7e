"""`hf-posswap demo`: compare, bias and report in one command, on a small GPT-2 that comes with hf_posswap."""

from pathlib import Path
from typing import Annotated

import typer

from hf_posswap.commands.console import note

SCHEMES = "alibi:trainable=true:per_layer=true,t5:per_layer=true,rope,sinusoidal"
"""ALiBi and T5 in the forms that calibration can fit: trainable slopes, and separate parameters for each layer."""
HEAL_TOKENS = 57344


def demo(
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="DIR", help="The results folder; an interrupted demo goes on there.")
    ] = Path("outputs/demo"),
    schemes: Annotated[
        str, typer.Option(metavar="S,S,…", help="Schemes to swap in, as for hf-posswap compare.")
    ] = SCHEMES,
    heal_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to heal each on.")] = HEAL_TOKENS,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="About how many tokens to read for each length, protocol and point.")
    ] = 4096,
    lengths: Annotated[
        str, typer.Option(metavar="N,N,…", help="Numbers of tokens to read at once.")
    ] = "128,256,512,1024,2048",
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
    compare(
        model="demo:gpt2",
        schemes=schemes,
        text=[measured],
        lengths=lengths,
        tokens=tokens,
        output_dir=output_dir,
        calibrate=True,
        heal_tokens=heal_tokens,
        batch_size=8,
        control=True,
        train_file=[learnt],
    )
    bias("demo:gpt2", schemes=schemes, text=[fitted], output_dir=output_dir, overwrite=True)
    report(output_dir)

"""`hf-posswap report`: all figures of a folder of results, as one page and as images."""

from pathlib import Path
from typing import Annotated

import typer

from hf_posswap.commands.console import note


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with results, at any depth.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page. By default report.html in DIR.")
    ] = None,
) -> None:
    """Draw what compare, evaluate, bench and bias wrote: one HTML page that needs no network, and PNG and SVG files."""
    from hf_posswap.commands.counting import count_progress
    from hf_posswap.reporting.report import write_report

    with count_progress("drawing", "figure") as progress:
        written = write_report(folder, output, progress)
    for message in written.notes:
        note(message)
    typer.echo("Wrote:")
    typer.echo(f"  {written.page}")
    typer.echo(f"  {len(written.images)} images in {written.images[0].parent}")

"""The report: one page with all figures of a folder of results, and the same figures as images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hf_posswap.reporting.catalogue import all_figures, undrawn
from hf_posswap.reporting.colours import looks
from hf_posswap.reporting.images import converter, draw
from hf_posswap.reporting.page import render_page
from hf_posswap.results.files import OutputError, write_atomically, write_text
from hf_posswap.results.groups import read_results
from hf_posswap.results.reading import ResultsError

FORMATS = ("png", "svg")


@dataclass(frozen=True)
class Report:
    """The files of a report.

    Attributes:
        page: the HTML file.
        images: PNG and SVG files of each figure.
        notes: result files, and schemes in them, that were left out, with reasons.
    """

    page: Path
    images: tuple[Path, ...]
    notes: tuple[str, ...]


def write_report(
    folder: Path, output: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Write the report of a folder of results.

    Args:
        folder: folder with result files, at any depth.
        output: path of the page. None: `report.html` in the folder. Images are written to `figures` next to the page.
        progress: called with (figures drawn, number of figures).

    Raises:
        ResultsError: the folder has no results, or a file that cannot be read.
        MissingPackageError: vl-convert-python is not installed.
        OutputError: the page or the images cannot be written.
    """
    converter()  # raise its error before any long work
    results = read_results(folder)
    chapters = all_figures(results)
    figures = [figure for _, own in chapters for figure in own]
    reasons = undrawn(results)
    if not figures:
        told = f"the result files in {str(folder)!r} have no rows that a figure could show."
        raise ResultsError(" ".join([told, *reasons]))
    results = replace(results, notes=(*results.notes, *reasons))
    styles = looks(results.keys())
    page = output if output is not None else folder / "report.html"
    images = page.parent / "figures"
    try:
        images.mkdir(parents=True, exist_ok=True)
        write_text(page, render_page(results, chapters, styles))
        written = []
        for done, figure in enumerate(figures, start=1):
            for suffix in FORMATS:
                path = images / f"{figure.name}.{suffix}"
                written.append(write_atomically(path, partial(draw, figure, styles=styles)))
            if progress is not None:
                progress(done, len(figures))
    except OSError as error:
        raise OutputError(
            f"cannot write the report to {str(page)!r}: {error.strerror or error}. Choose another place, with --output."
        ) from error
    return Report(page, tuple(written), results.notes)

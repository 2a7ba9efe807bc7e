"""The files of a comparison: compare.json with everything, compare.csv with the rows, compare.png drawn from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_posswap.reporting.colours import STOCK
from hf_posswap.reporting.comparison_figure import draw_comparison
from hf_posswap.reporting.files import write_atomically
from hf_posswap.reporting.result_files import read_result, write_result

NAME = "compare"


def write_comparison(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write compare.csv, compare.json and compare.png into an existing folder, each atomically.

    Returns:
        The paths of the files.
    """
    table, record = write_result(result, folder, NAME)
    figure = write_atomically(folder / f"{NAME}.png", lambda path: draw_comparison(read_comparison(record), path))
    return [table, record, figure]


def remove_comparison(folder: Path) -> None:
    """Remove a comparison's files from a folder."""
    for suffix in ("csv", "json", "png"):
        (folder / f"{NAME}.{suffix}").unlink(missing_ok=True)


def read_comparison(path: Path) -> dict[str, Any]:
    """Read a compare.json, also one from before there were stages and seeds: its schemes were swapped and no more.

    Raises:
        ResultFileError: the file is missing or is no comparison.
    """
    result = read_result(path)
    seed = result.get("seed", 0)
    result["rows"] = [
        {"stage": STOCK if row["scheme"] == STOCK else "swapped", "seed": seed} | row for row in result["rows"]
    ]
    return result

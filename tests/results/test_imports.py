"""What results are made of and read with stands below everything that measures, draws and publishes."""

import ast
from pathlib import Path

import hf_posswap.results

ABOVE = ("benchmarking", "commands", "evaluation", "experiments", "hub", "reporting", "training")


def test_results_import_nothing_that_uses_them() -> None:
    folder = Path(hf_posswap.results.__file__).parent
    imported = {
        (path.name, node.module)
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert ("reading.py", "hf_posswap.results.kinds") in imported
    above = {f"hf_posswap.{name}" for name in ABOVE}
    assert [pair for pair in imported if ".".join(pair[1].split(".")[:2]) in above] == []

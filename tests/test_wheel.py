"""What is installed without the repository: a wheel that runs the main job, and messages that point to nothing else."""

import ast
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_posswap

ROOT = Path(__file__).parents[1]
LARGEST = 10_000_000
"""Bytes of a wheel, most of which is the small GPT-2."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository as it is; hatchling is of the extra `test`."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder), str(ROOT))
    [built] = folder.glob("*.whl")
    return built


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {_normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in required}
    installed = importlib.metadata.packages_distributions()
    missing = {
        name: path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "hf_posswap").rglob("*.py"))
        for name in _imported(path) - {"hf_posswap", *sys.stdlib_module_names}
        if declared.isdisjoint(map(_normal, installed.get(name, [name])))
    }
    assert missing == {}


def _imported(path: Path) -> set[str]:
    """Return the names of the packages that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level and node.module]
    return {module.partition(".")[0] for module in modules}


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_wheel_is_small_and_has_what_the_main_job_needs(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("gpt2-books", "books"):
        of_package = ROOT / "hf_posswap" / "assets" / folder
        files = {path.relative_to(ROOT).as_posix() for path in of_package.rglob("*") if path.is_file()}
        assert files
        assert files <= names
    assert not [name for name in names if name.startswith(("tests/", "examples/", "docs/"))]


@pytest.mark.slow
def test_the_demo_runs_from_an_installed_wheel_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    """As a user without a clone: swapped, calibrated, healed with a control, measured, and the report drawn."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    scheme = "alibi:trainable=true:per_layer=true"
    small = ["--heal-tokens", "2048", "--tokens", "256", "--lengths", "128,256", "--schemes", scheme]
    done = subprocess.run(
        [sys.executable, "-m", "hf_posswap.cli", "demo", *small],
        env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}, cwd=elsewhere, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This measures on demo:book/test and heals on demo:excerpt" in done.stderr
    results = elsewhere / "outputs" / "demo"
    record = json.loads((results / "compare.json").read_text(encoding="utf-8"))
    measured = {(row["scheme"], row["stage"]) for row in record["rows"] if row["loss"] is not None}
    stages = {(scheme, stage) for stage in ("swapped", "calibrated", "healed")}
    assert measured == {("stock", "stock"), ("stock", "control")} | stages
    assert [text["name"] for text in record["texts"]] == ["frankenstein.txt"]
    assert {path.name for path in results.iterdir()} >= {"compare.png", "biases.json", "report.html", "figures"}


def messages() -> Iterator[tuple[str, str]]:
    """Yield the file and the text of every string in the package that is no docstring."""
    for path in sorted(Path(hf_posswap.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                yield path.name, node.value


def test_no_message_points_to_a_page_that_is_not_installed() -> None:
    pages = re.compile(r"(docs|examples|tests)/|(?<!README)\.md\b")
    assert [(name, text) for name, text in messages() if pages.search(text)] == []

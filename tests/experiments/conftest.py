"""Small comparisons on real weights: of untrained swaps, and of every stage."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.experiments.settings import ComparisonSettings, recipe
from hf_posswap.texts.sources import resolve_texts

CHARACTERS = 20_000
"""Of each book; tokenising whole ones would take most of the time."""


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Beginnings of a book to measure on and of one to learn from."""
    folder = tmp_path_factory.mktemp("books")
    paths = {}
    for name in ("test", "train"):
        path: Path = folder / f"{name}.txt"
        path.write_text(resolve_texts(f"demo:book/{name}")[0].read()[:CHARACTERS], encoding="utf-8")
        paths[name] = str(path)
    return paths


@pytest.fixture(scope="session")
def changed(books: dict[str, str]) -> Callable[..., ComparisonSettings]:
    """Untrained swaps, with some settings changed."""
    settings = ComparisonSettings(
        model="demo:gpt2", schemes=("alibi", "t5"), texts=(books["test"],), lengths=(128, 64, 512), tokens=1024
    )
    return lambda **values: dataclasses.replace(settings, **values)


@pytest.fixture(scope="session")
def healed(changed: Callable[..., ComparisonSettings], books: dict[str, str]) -> Callable[..., ComparisonSettings]:
    """Every stage, on few tokens, with some settings changed."""
    settings: dict[str, Any] = {
        "schemes": ("t5:per_layer=true", "alibi"),
        "lengths": (64, 300),
        "tokens": 300,
        "train_texts": (books["train"],),
        "calibrate": True,
        "calibration_tokens": 512,
        "healing": recipe(96, length=16, batch_size=2, precision="no"),
        "control": True,
    }
    return lambda **values: changed(**(settings | values))

"""What a command line in the docs is checked for: its options exist, and so do the files and targets it names."""

import re
import tomllib
from pathlib import Path
from typing import Any

import typer

from tests.documents.blocks import ROOT

QUICK = ("schemes", "matrix", "describe", "swap", "card")
"""Commands of hf-posswap that take seconds: they are run, all others parsed."""
PLACEHOLDERS = {"MODEL": "demo:gpt2", "BOOK": "hf_posswap/assets/books/test/frankenstein.txt"}
"""Words in capitals stand for what a reader has."""


def check_command(words: list[str]) -> None:
    """Fail if a reader who types the command would be told that something does not exist."""
    while "=" in words[0] and words[0].split("=")[0].isupper():
        words = words[1:]  # environment variables
    name, *rest = words
    checks = {
        "hf-posswap": check_hf_posswap,
        "make": check_make,
        "pip": check_pip,
        "python": check_python,
        "accelerate": check_accelerate,
        "mkdocs": lambda rest: None,
        "git": lambda rest: None,
        "cd": lambda rest: None,
        "export": lambda rest: None,
    }
    assert name in checks, f"command {name!r} is not known to tests/documents/commands.py"
    checks[name](rest)


def filled(words: list[str], output: Path | None = None) -> list[str]:
    """Put real files in the place of words in capitals; outputs go below a folder."""
    result = []
    for word in words:
        if word.isupper() and word.isalpha() and word not in PLACEHOLDERS:
            word = str((output or ROOT / "outputs") / word)
        result.append(PLACEHOLDERS.get(word, word))
    return result


def check_hf_posswap(words: list[str]) -> None:
    """Parse a command line of hf-posswap without running it: unknown commands, options and types raise."""
    from hf_posswap.commands import app

    group: Any = typer.main.get_command(app)
    name, *rest = filled(words)
    if name.startswith("-"):
        assert name in ("--help", "--version"), name
        return
    command = group.commands.get(name)
    assert command is not None, f"hf-posswap has no command {name!r}: {', '.join(group.commands)}"
    if rest != ["--help"]:
        command.make_context(name, rest, resilient_parsing=False)


def check_make(words: list[str]) -> None:
    """The targets are in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        assert "=" in word or re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), f"no target {word!r}"


def check_pip(words: list[str]) -> None:
    """The extras are in pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        for extra in re.findall(r"hf_posswap\[([\w,-]+)\]", word):
            assert set(extra.split(",")) <= extras.keys(), f"pyproject.toml has not all extras of {word!r}"


def check_python(words: list[str]) -> None:
    """The script or module exists; of pytest, the paths it is given."""
    if words[:2] == ["-m", "pytest"]:
        paths = [word for word in words[2:] if word.startswith("tests")]
        assert all((ROOT / path).exists() or "NAME" in path or "logarithmic" in path for path in paths), paths
    elif words[:2] == ["-m", "hf_posswap.cli"]:
        check_hf_posswap(words[2:])
    elif words and words[0].endswith(".py"):
        assert (ROOT / words[0]).is_file(), f"no script {words[0]!r}"


def check_accelerate(words: list[str]) -> None:
    """The configuration exists, and what is launched passes its own check."""
    if words[:1] != ["launch"]:
        return
    rest = words[1:]
    while rest and rest[0].startswith("--"):
        option, value, *rest = rest
        assert option != "--config_file" or (ROOT / value).is_file(), value
    check_python(rest)

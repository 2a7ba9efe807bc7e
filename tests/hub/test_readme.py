"""The README's section on publishing, word for word: its commands and its Python, each in a process of its own."""

import json
from pathlib import Path

import pytest

from tests.documents.blocks import ROOT, blocks_of, commands_of
from tests.hub.cards import card_errors
from tests.hub.conftest import Run
from tests.hub.server import TOKEN, HubServer


def publish_section() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split("\n## Publish\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.slow
def test_publish_section_word_for_word(hub: HubServer, run: Run, tmp_path: Path) -> None:
    shell, python = blocks_of("README.md", publish_section())
    assert (shell.language, python.language) == ("sh", "python")
    for words in commands_of(shell):
        done = run(*words)
        assert done.returncode == 0, (words, done.stderr[-3000:])
        assert TOKEN not in done.stdout + done.stderr
    assert hub.repositories["you/gpt2-alibi"].private
    loaded = run("-c", python.code)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    first, second = hub.files("you/gpt2-alibi"), hub.files("you/another")
    assert first["model.safetensors"] == second["model.safetensors"]
    assert json.loads(first["config.json"])["pos_scheme"] == json.loads(second["config.json"])["pos_scheme"]
    for files in (first, second):
        assert card_errors(files["README.md"].decode()) == []
        assert "**ALiBi**" in files["README.md"].decode()
    assert "hf-posswap swap demo:gpt2 --pos-scheme alibi --output-dir OUT" in first["README.md"].decode().replace(
        "python -m hf_posswap.cli", "hf-posswap"
    )

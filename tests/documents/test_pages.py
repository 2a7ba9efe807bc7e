"""The code in README and docs does what the text says: Python is run page by page, commands are run or parsed."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.documents.blocks import PAGES, ROOT, Block, blocks_of, commands_of
from tests.documents.commands import QUICK, check_command, filled
from tests.documents.printed import assert_printed
from tests.matrix.test_round_trip import ENVIRONMENT

RUN_ELSEWHERE = ("docs/adding-a-scheme.md",)
"""Pages whose blocks are files of a scratch copy of the repository."""
STAND_INS = {
    '"gpt2"': "path",
    '"bert-base-uncased"': "BERT",
    "tokens=224_000": "tokens=512, length=128, batch_size=2",
}
"""No network, and no hours: small real models for the names of larger ones, a few steps for many."""
TEXT = ROOT / "hf_posswap" / "assets" / "books" / "test" / "frankenstein.txt"

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON_PAGES = [
    page for page in PAGES if page not in RUN_ELSEWHERE and any(b.language == "python" for b in blocks_of(page))
]
COMMANDS = [(block, words) for block in BLOCKS if block.language == "sh" for words in commands_of(block)]


@pytest.fixture(scope="module")
def small_gpt2(gpt2_books_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPT-2 in float32, as the ones on the Hub are."""
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.AutoModelForCausalLM.from_pretrained(gpt2_books_path, dtype=torch.float32).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(gpt2_books_path).save_pretrained(folder)
    return str(folder)


def reader(path: str, bert: Path, folder: Path) -> dict[str, Any]:
    """What the text takes for granted: a model's path, its tokenizer, some texts, and a folder to write to."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    text = TEXT.read_text(encoding="utf-8")
    ids = tokenizer(text[:20_000], return_tensors="pt").input_ids[0]
    return {
        "path": path,
        "tokenizer": tokenizer,
        "texts": [text[start : start + 1200] for start in range(0, 4800, 1200)],
        "batches": [ids[start : start + 128][None] for start in (0, 128)],
        "folder": str(folder),
        "BERT": str(bert),
    }


def source_of(block: Block) -> str:
    """The block with stand-ins, on its own lines of the page so that a traceback names them."""
    code = block.code
    for name, stand_in in STAND_INS.items():
        code = code.replace(name, stand_in)
    return "\n" * block.line + code


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_runs(
    page: str, small_gpt2: str, minilm_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    namespace = reader(small_gpt2, minilm_path, tmp_path)
    blocks = blocks_of(page)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language != "python":
            continue
        if block.title is not None:
            assert (ROOT / block.title).read_text(encoding="utf-8") == block.code, f"{block} is not {block.title}"
            continue
        code = compile(source_of(block), str(ROOT / page), "exec")
        if block.not_run is not None:
            continue
        torch.manual_seed(0)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.fails:
                with pytest.raises(Exception, match=re.escape(block.fails)):
                    exec(code, namespace)
            else:
                exec(code, namespace)
        if following is not None and following.language == "text":
            assert_printed(printed.getvalue(), following.code)


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=[f"{b}-{' '.join(w)[:40]}" for b, w in COMMANDS])
def test_commands_exist(block: Block, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_command(words)
    if words[0] == "hf-posswap" and words[1] in QUICK and block.not_run is None and "demo:llama" not in words:
        run_command(filled(words[1:], tmp_path))


def run_command(words: list[str]) -> None:
    """Run a command in this process, which has imported what a new one would spend seconds on."""
    from typer.testing import CliRunner

    from hf_posswap.commands import app

    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (words, done.output)


@pytest.mark.slow
def test_a_scheme_is_added_as_the_page_says(small_gpt2: str, tmp_path: Path) -> None:
    page = "docs/adding-a-scheme.md"
    for folder in ("hf_posswap", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "docs"):
        (tmp_path / file).symlink_to(ROOT / file)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    written = []
    for block in blocks_of(page):
        if block.language == "python" and block.title:
            assert not (tmp_path / block.title).exists(), "the page's scheme must be one that is not there"
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
            written.append(block.title)
        elif block.language == "python":
            program = f"path = {small_gpt2!r}\n" + source_of(block)
            run_in(tmp_path, [sys.executable, "-c", program], environment)
        elif block.title == "in the scratch copy":
            for words in commands_of(block):
                stdout = run_in(tmp_path, [sys.executable, *words[1:], "-p", "no:cacheprovider"], environment)
                assert re.search(r"\d+ passed", stdout), stdout
    assert [Path(name).parent.name for name in written] == ["schemes", "oracles", "schemes"]


def run_in(folder: Path, command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{' '.join(command)[:200]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


EXAMPLE = """
<!-- not run: needs a network -->

```python title="a/b.py"
x = 1
```

- in a list

    ```sh
    make \\
      demo  # now
    ```

```
hf-posswap schemes
```

<!-- fails: no such thing -->
```
plain
```
"""


def test_blocks_are_found_with_their_marks() -> None:
    first, second, third, fourth = blocks_of("page.md", EXAMPLE)
    assert (first.language, first.title, first.code) == ("python", "a/b.py", "x = 1\n")
    assert (first.line, first.not_run, first.fails) == (4, "needs a network", None)
    assert (second.language, commands_of(second), second.not_run) == ("sh", [["make", "demo"]], None)
    assert (third.language, third.not_run, third.fails) == ("sh", None, None)
    assert (fourth.language, fourth.fails) == ("", "no such thing")


@pytest.mark.parametrize(
    "command",
    [
        "hf-posswap swop MODEL",
        "hf-posswap swap MODEL --pos-scheme alibi --output OUT",
        "make tests",
        "pip install 'hf_posswap[everything]'",
        "python examples/none.py",
        "accelerate launch --config_file none.yaml examples/finetune_clm.py",
        "curl x",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(command: str) -> None:
    block = Block("page.md", 1, "sh", None, command, None, None)
    with pytest.raises(Exception, match=r"."):
        check_command(commands_of(block)[0])

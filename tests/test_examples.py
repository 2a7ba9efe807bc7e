"""The examples run as they are, in processes of their own, and what they save can be loaded."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from tests.training import processes

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))


@dataclass(frozen=True)
class Script:
    """A script that trains: the options of a tiny run, and what it prints and saves.

    Attributes:
        options: of the command line; some lengths are beyond the stock model's limit.
        scheme: name of the scheme in the saved model.
        auto: the stock Auto class that loads what was saved.
        lengths: columns of the table.
        rows: its rows.
        beyond: how many of the last cells the stock model leaves open.
        better: the sign of the difference that training makes in the table: −1 for a loss, 1 for a cosine.
    """

    options: tuple[str, ...]
    scheme: str
    auto: Any
    lengths: tuple[int, ...]
    rows: tuple[str, ...]
    beyond: int = 0
    better: int = -1


CAUSAL, MASKED = transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM
TINY = ("--tokens", "1024", "--batch-size", "2", "--eval-tokens", "1024")
TRAINING = {
    "finetune_clm.py": Script(
        (*TINY, "--length", "128"),
        "alibi",
        CAUSAL,
        (128, 256, 512),
        ("stock", "swapped", "calibrated", "healed"),
        beyond=1,
    ),
    "finetune_mlm.py": Script(
        (*TINY, "--length", "128"),
        "rope",
        MASKED,
        (128, 512, 1024),
        ("stock", "swapped", "calibrated", "healed", "control"),
        beyond=1,
    ),
    "finetune_embedding.py": Script(
        (*TINY, "--length", "128"),
        "rope",
        transformers.AutoModel,
        (16, 32, 64, 128),
        ("swapped", "calibrated", "healed"),
        better=1,
    ),
    "finetune_with_trainer.py": Script(
        (*TINY, "--length", "128"), "alibi", CAUSAL, (128, 256, 512), ("swapped", "trained")
    ),
}
CALIBRATED = Script(
    (*TINY, "--length", "64", "--pos-scheme", "t5:per_layer=true"),
    "t5",
    transformers.AutoModel,
    (8, 16, 32, 64),
    ("swapped", "calibrated", "healed"),
    better=1,
)


@dataclass(frozen=True)
class Texts:
    """What the scripts learn from, a few windows, and what they measure on, long enough for 4096 tokens at once."""

    train: Path
    evaluation: Path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    train, evaluation = (tmp_path_factory.mktemp(name) for name in ("train", "evaluation"))
    return Texts(processes.short_text(train, characters=8_000), processes.short_text(evaluation))


def test_every_example_has_a_test():
    # What swap.py prints is compared with its recorded output: tests/documents/test_examples.py.
    assert set(SCRIPTS) == {"swap.py", *TRAINING}


def table(stdout: str, lengths: tuple[int, ...]) -> dict[str, list[float | None]]:
    """Return the printed table by row; a cell is None where there is a dash."""
    lines = [line.split() for line in stdout.splitlines()]
    head = lines.index(["model", *map(str, lengths)])
    rows: dict[str, list[float | None]] = {}
    for name, *cells in lines[head + 1 :]:
        if len(cells) != len(lengths) or not all(cell == "-" or cell.replace(".", "").isdigit() for cell in cells):
            continue
        rows[name] = [None if cell == "-" else float(cell) for cell in cells]
    return rows


def check(stdout: str, script: Script, folder: Path) -> None:
    found = table(stdout, script.lengths)
    assert tuple(found) == script.rows
    for name, cells in found.items():
        open_cells = script.beyond if name in ("stock", "control") else 0
        assert [cell is None for cell in cells] == [False] * (len(cells) - open_cells) + [True] * open_cells, name
        assert all(cell is None or math.isfinite(cell) for cell in cells)
    after = found[script.rows[-1] if "healed" not in found else "healed"]
    assert script.better * (after[0] - found["swapped"][0]) > 0
    model = script.auto.from_pretrained(folder)
    assert model.config.pos_scheme["name"] == script.scheme
    assert hf_posswap.longest_position(model) is None
    with torch.no_grad():
        output = model(torch.arange(1000, 1600)[None])
    assert bool(torch.isfinite(output[0]).all())
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == model.get_input_embeddings().num_embeddings


def run(name: str, script: Script, texts: Texts, folder: Path, *program: str) -> str:
    files = ["--train-file", str(texts.train), "--eval-file", str(texts.evaluation), "--output-dir", str(folder)]
    program = program or (sys.executable, str(FOLDER / name))
    return processes.succeeded([*script.options, *files], *program).stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_training_prints_its_table_and_saves_a_model_that_loads(name: str, texts: Texts, tmp_path: Path) -> None:
    stdout = run(name, TRAINING[name], texts, tmp_path)
    check(stdout, TRAINING[name], tmp_path)
    if name == "finetune_mlm.py":
        assert "has no masked-token head: put a fresh one on it, tied to the words: True" in stdout
    if name == "finetune_embedding.py":
        assert "stock, the first 512 tokens" in stdout
    if name == "finetune_with_trainer.py":
        assert "loaded as PosSwapGPT2LMHeadModel, equal logits: True" in stdout


@pytest.mark.slow
def test_an_encoder_is_calibrated_where_its_scheme_can_be(texts: Texts, tmp_path: Path) -> None:
    check(run("finetune_embedding.py", CALIBRATED, texts, tmp_path), CALIBRATED, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune_clm.py", "finetune_embedding.py"])
def test_two_processes_print_one_table(name: str, texts: Texts, tmp_path: Path) -> None:
    program = processes.launched("cpu_two_processes.yaml", str(FOLDER / name))
    stdout = run(name, TRAINING[name], texts, tmp_path, *program)
    check(stdout, TRAINING[name], tmp_path)
    assert stdout.count(f"saved to {tmp_path}") == 1
    assert sum(line.startswith("swapped") for line in stdout.splitlines()) == 1

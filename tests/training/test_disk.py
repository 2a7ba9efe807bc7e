"""What healing reads from disk and writes to it: full disks, broken checkpoints, datasets and trackers."""

import hashlib
import json
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner, Result

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.experiments import healing
from hf_posswap.training.checkpoints import TrainingCheckpointError
from hf_posswap.training.loop import heal
from hf_posswap.training.options import HealingOptions
from tests.training import processes
from tests.training.helpers import WordTokenizer, gpt2
from tests.training.helpers import text as words
from tests.training.processes import PLAIN, arguments, broken_by, run, succeeded

WITHOUT_ROOM = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
from hf_posswap.cli import main
main()
"""
"""Runs the command line, and the kernel lets no file grow larger than a megabyte."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return processes.short_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, gpt2_books_path: Path) -> str:
    """A folder with a very small GPT-2 and the tokenizer of the small one."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=4096, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gpt2_books_path).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one checkpoint and a half of the small GPT-2."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def invoke(*command: str) -> Result:
    return CliRunner().invoke(app, list(command))


def refused(*command: str) -> str:
    """Run a command that must be refused, and return its message."""
    result = invoke(*command)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def content_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def require_that_only_the_checkpoint_failed(result: "subprocess.CompletedProcess[str]", folder: Path) -> None:
    assert result.returncode == 2, result.stderr
    message = result.stderr[result.stderr.index("hf-posswap: error:") :]
    assert "cannot write checkpoint" in message
    assert "checkpoint-0000004" in message
    assert "Earlier checkpoints are intact" in message
    assert "--resume" in message
    assert "Traceback" not in result.stderr
    assert processes.names_in(folder) == ["checkpoint-0000002"]


@pytest.mark.slow
def test_a_run_goes_on_when_a_full_disk_has_room_again(text: Path, small_disk: Path) -> None:
    command = arguments(small_disk / "out", text, "--steps", "4", "--keep-checkpoints", "1")
    result = run(command)
    assert "No space left on device" in result.stderr
    require_that_only_the_checkpoint_failed(result, small_disk / "out")
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert "going on after step 2 of 4" in succeeded([*command, "--resume"]).stderr
    assert processes.names_in(small_disk / "out") == ["checkpoint-0000004"]


@pytest.mark.slow
def test_a_run_goes_on_after_a_checkpoint_that_could_not_be_written(text: Path, tmp_path: Path) -> None:
    command = arguments(tmp_path / "out", text, "--steps", "4")
    result = run(command, *broken_by("LIMIT", 4))
    assert "File too large" in result.stderr
    require_that_only_the_checkpoint_failed(result, tmp_path / "out")
    assert "going on after step 2 of 4" in succeeded([*command, "--resume"]).stderr


@pytest.mark.slow
def test_a_healed_model_that_cannot_be_written_is_an_error_with_a_message(text: Path, tmp_path: Path) -> None:
    command = arguments(tmp_path / "out", text, "--steps", "1", "--checkpoint-every", "0")
    result = run(command, PLAIN[0], "-c", WITHOUT_ROOM)
    assert result.returncode == 2, result.stderr
    assert "cannot write the healed model" in result.stderr
    assert "Make room, then run again" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "healing.json").exists()


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (Exception("No space left on device (os error 28)"), TrainingCheckpointError),  # as tokenizers has it
        (OSError(28, "No space left on device"), TrainingCheckpointError),
        (TypeError("a mistake of ours"), TypeError),
    ],
)
def test_a_tokenizer_that_cannot_be_written(failure: Exception, raised: type[Exception], tmp_path: Path) -> None:
    class Tokenizer(WordTokenizer):
        def save_pretrained(self, folder: Path) -> None:
            raise failure

    options = HealingOptions(steps=2, length=16, batch_size=2, checkpoint_every=1)
    with pytest.raises(raised, match="last checkpoint is intact" if raised is TrainingCheckpointError else "mistake"):
        heal(hf_posswap.swap(gpt2(), "t5"), [words(200)], Tokenizer(), options, output_dir=tmp_path)


def test_a_result_that_cannot_be_written(
    small: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(healing, "write_text", full)
    message = refused(*arguments(tmp_path / "out", text, "--steps", "2", model=small))
    assert "cannot write" in message
    assert "healing.json" in message
    assert "--resume" in message
    monkeypatch.undo()
    assert invoke(*arguments(tmp_path / "out", text, "--steps", "2", "--resume", model=small)).exit_code == 0
    assert len(processes.history_of(tmp_path / "out")) == 2


@pytest.fixture(scope="module")
def finished(small: str, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    assert invoke(*arguments(folder, text, "--steps", "4", model=small)).exit_code == 0
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights cut off": ("weights.safetensors", truncate),
    "optimizer cut off": ("optimizer.safetensors", truncate),
    "state is no JSON": ("state.json", lambda path: path.write_text("{not json")),
    "state is no text": ("state.json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "state of another kind": ("state.json", lambda path: path.write_text("[1, 2]")),
    "weights missing": ("weights.safetensors", Path.unlink),
    "optimizer missing": ("optimizer.safetensors", Path.unlink),
    "state missing": ("state.json", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_named_with_the_one_to_go_on_from(
    damage: str, finished: Path, small: str, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    name, change = DAMAGES[damage]
    change(folder / "checkpoint-0000004" / name)
    before = content_of(folder)
    message = refused(*arguments(folder, text, "--steps", "4", "--resume", model=small))
    assert "checkpoint-0000004' is broken" in message
    assert "go on from checkpoint-0000002" in message
    assert content_of(folder) == before
    shutil.rmtree(folder / "checkpoint-0000004")  # what the message says
    result = invoke(*arguments(folder, text, "--steps", "4", "--resume", model=small))
    assert "going on after step 2 of 4" in result.stderr
    assert processes.history_of(folder) == processes.history_of(finished)


def test_folders_that_are_no_checkpoints_are_left_alone(finished: Path, small: str, text: Path, tmp_path: Path) -> None:
    folder = processes.interrupted_copy(finished, tmp_path / "out", 2)
    (folder / "checkpoint-mine").mkdir()
    unfinished = folder / ".checkpoint-0000099.partial"
    unfinished.mkdir()
    result = invoke(*arguments(folder, text, "--steps", "4", "--resume", "--keep-checkpoints", "1", model=small))
    assert "going on after step 2 of 4" in result.stderr
    assert processes.names_in(folder) == ["checkpoint-0000004", "checkpoint-mine"]


def test_tensorboard_tells_the_losses_of_the_run_and_its_control_apart(small: str, text: Path, tmp_path: Path) -> None:
    options = ("--steps", "3", "--log-with", "tensorboard", "--control")
    assert invoke(*arguments(tmp_path / "out", text, *options, model=small)).exit_code == 0
    events = {path.parent for path in (tmp_path / "out" / "logs").rglob("events.out.tfevents.*")}
    logged = [EventAccumulator(str(folder)).Reload() for folder in events]
    (scalars,) = [log for log in logged if "healed/loss" in log.Tags()["scalars"]]
    result = processes.result_of(tmp_path / "out")
    for name, entry in (("healed", "healing"), ("control", "control")):
        rows = result[entry]["history"]
        assert [event.step for event in scalars.Scalars(f"{name}/loss")] == [row["step"] for row in rows] == [1, 2, 3]
        for key in ("loss", "learning_rate", "gradient_norm"):
            values = [event.value for event in scalars.Scalars(f"{name}/{key}")]
            assert values == torch.tensor([row[key] for row in rows], dtype=torch.float32).tolist()


@pytest.mark.parametrize("tracker", ["nonsense", "comet_ml"])
def test_a_tracker_that_is_unknown_or_not_installed_is_refused(
    tracker: str, small: str, text: Path, tmp_path: Path
) -> None:
    message = refused(*arguments(tmp_path / "out", text, "--steps", "2", "--log-with", tracker, model=small))
    assert f"cannot log with '{tracker}'" in message
    assert "tensorboard" in message
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def datasets_folder(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the same paragraphs as JSON lines and as Parquet, and one with broken lines."""
    import pyarrow
    from pyarrow import parquet

    paragraphs = [part for part in text.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    rows = [{"body": part, "number": number} for number, part in enumerate(paragraphs)]
    folder = tmp_path_factory.mktemp("datasets")
    for name in ("jsonl", "parquet", "broken"):
        (folder / name).mkdir()
    (folder / "jsonl" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "parquet" / "train.parquet")
    (folder / "broken" / "train.jsonl").write_text('{"body": "a"}\n{"body": \n', encoding="utf-8")
    return folder


def dataset_run(output: Path, folder: Path, model: str, *options: str) -> list[str]:
    run = ["--model", model, "--pos-scheme", "t5", "--dataset", str(folder), "--output-dir", str(output)]
    return ["finetune", *run, "--steps", "2", "--length", "32", "--batch-size", "2", *options]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dataset_streams_from_a_folder(kind: str, datasets_folder: Path, small: str, tmp_path: Path) -> None:
    command = dataset_run(tmp_path / "out", datasets_folder / kind, small, "--text-column", "body")
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    healing = processes.result_of(tmp_path / "out")
    assert healing["texts"] == [{"dataset": str(datasets_folder / kind), "split": "train", "column": "body"}]
    assert healing["healing"]["tokens"] == 2 * 2 * 32


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("jsonl", ["--text-column", "nope"], "has no column 'nope'. Its columns: body, number."),
        ("parquet", ["--text-column", "nope"], "has no column 'nope'. Its columns: body, number."),
        ("jsonl", ["--text-column", "number"], "column 'number' of the documents holds a int"),
        ("jsonl", ["--text-column", "body", "--dataset-split", "test"], "cannot load split 'test'"),
        ("missing", ["--text-column", "body"], "cannot load split 'train'"),
        ("broken", ["--text-column", "body"], "JSON parse error"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(
    kind: str,
    options: list[str],
    message: str,
    datasets_folder: Path,
    small: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # datasets logs to the first stderr it saw, which the runner has closed by now; logging would complain of that.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    refusal = refused(*dataset_run(tmp_path / "out", datasets_folder / kind, small, *options))
    assert message in refusal
    assert str(datasets_folder / kind) in refusal or "column" in refusal
    assert not (tmp_path / "out").exists()

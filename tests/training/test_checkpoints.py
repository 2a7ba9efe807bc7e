import errno
import json
import shutil

import pytest
import torch

import hf_posswap
from hf_posswap.training import checkpoints
from hf_posswap.training.checkpoints import TrainingCheckpointError, checkpoints_in
from hf_posswap.training.loop import heal
from hf_posswap.training.options import HealingOptions
from tests.training.helpers import WordTokenizer, bert, gpt2, learning, llama, text

TEXTS = [text(1500)]


class Interrupted(Exception):
    pass


def stop_after(step):
    from hf_posswap.training.loop import HealingObserver

    class Observer(HealingObserver):
        def step(self, row):
            if row["step"] == step:
                raise Interrupted

    return Observer()


def run(model, folder, resume=False, bert=False, observer=None, identity=None, **changes):
    settings = {"steps": 8, "length": 16, "batch_size": 2, "checkpoint_every": 2, "learning_rate": 1e-2} | changes
    options = HealingOptions(**learning(settings))
    return heal(
        model,
        TEXTS,
        WordTokenizer(bert=bert),
        options,
        output_dir=folder,
        resume=resume,
        observer=observer,
        run=identity,
    )


def losses(report):
    return [row["loss"] for row in report.history]


CASES = {
    "t5": (lambda: hf_posswap.swap(gpt2(), "t5"), {}),
    "dropout": (lambda: hf_posswap.swap(gpt2(resid_pdrop=0.2, attn_pdrop=0.2), "alibi"), {"distill": 0.5}),
    "mlm": (lambda: hf_posswap.swap(bert(head=True, hidden_dropout_prob=0.1), "rope"), {"bert": True}),
    "scheme": (lambda: hf_posswap.swap(gpt2(), "relative_bias"), {"train": "scheme", "distill": 1.0}),
    "accumulation": (lambda: hf_posswap.swap(gpt2(), "alibi"), {"accumulation": 3}),
    "control": (gpt2, {}),
    "supervised": (lambda: hf_posswap.swap(llama(), "t5"), {"supervise": ("attention=0.375", "logits", "hidden")}),
    "lengths": (lambda: hf_posswap.swap(gpt2(), "t5"), {"length": (8, 16), "supervise": ("attention=0.25", "hidden")}),
}


@pytest.mark.parametrize(("case", "stop"), [*((case, 5) for case in CASES), ("supervised", 3), ("supervised", 2)])
def test_a_resumed_run_continues_to_the_losses_and_weights_of_an_unbroken_one(case, stop, tmp_path):
    """Also a run that stops in its attention stage, at its end (3 of 8 steps), and in a later phase."""
    make, changes = CASES[case]
    unbroken = make()
    expected = run(unbroken, tmp_path / "unbroken", **changes)
    with pytest.raises(Interrupted):
        run(make(), tmp_path / "broken", observer=stop_after(stop + 1), **{"checkpoint_every": 1} | changes)
    written = [path.name for path in checkpoints_in(tmp_path / "broken")]
    assert written == [f"checkpoint-{number:07}" for number in (stop - 1, stop)]
    resumed = make()
    report = run(resumed, tmp_path / "broken", resume=True, **changes)
    assert losses(report) == losses(expected)
    assert [row["tokens"] for row in report.history] == [row["tokens"] for row in expected.history]
    for (name, value), other in zip(resumed.state_dict().items(), unbroken.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_a_finished_run_resumes_to_itself(tmp_path):
    first = hf_posswap.swap(gpt2(), "t5")
    expected = run(first, tmp_path)
    again = hf_posswap.swap(gpt2(), "t5")
    assert losses(run(again, tmp_path, resume=True)) == losses(expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_only_the_newest_checkpoints_stay(tmp_path):
    run(gpt2(), tmp_path, keep_checkpoints=3, checkpoint_every=1)
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-000000{n}" for n in (6, 7, 8)]


def test_checkpoints_hold_safetensors_and_json_only(tmp_path):
    run(gpt2(), tmp_path)
    for path in checkpoints_in(tmp_path):
        assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("fails", ["weights", "optimizer", "state", "rename"])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_half_one(fails, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        run(gpt2(), tmp_path, observer=stop_after(5))
    before = {file: file.read_bytes() for path in checkpoints_in(tmp_path) for file in path.iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")
    stock_save = checkpoints.save_file

    def save(tensors, path):
        if path.name.startswith(fails):
            path.write_bytes(b"half")
            raise full
        stock_save(tensors, path)

    def refuse(*_args, **_kwargs):
        raise full

    monkeypatch.setattr(checkpoints, "save_file", save)
    if fails == "state":
        monkeypatch.setattr(type(tmp_path), "write_text", refuse)
    if fails == "rename":
        monkeypatch.setattr(type(tmp_path), "replace", refuse)
    with pytest.raises(TrainingCheckpointError, match=r"cannot write checkpoint .*No space left.*--resume"):
        run(gpt2(), tmp_path, resume=True)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*partial"))
    assert {file: file.read_bytes() for path in checkpoints_in(tmp_path) for file in path.iterdir()} == before
    assert len(losses(run(gpt2(), tmp_path, resume=True))) == 8


def test_a_new_run_does_not_write_among_the_checkpoints_of_another(tmp_path):
    run(gpt2(), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TrainingCheckpointError, match="holds checkpoints of an earlier run, up to checkpoint-0000008"):
        run(gpt2(), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [checkpoints.WEIGHTS, checkpoints.OPTIMIZER, checkpoints.STATE])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_broken_checkpoint_is_named_with_the_way_out(name, damage, tmp_path):
    run(gpt2(), tmp_path)
    newest = checkpoints_in(tmp_path)[-1]
    file = newest / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\x00garbage" * 9)
    model = gpt2()
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(TrainingCheckpointError, match=r"checkpoint-0000008' is broken.*go on from checkpoint-0000006"):
        run(model, tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    shutil.rmtree(newest)
    assert len(losses(run(gpt2(), tmp_path, resume=True))) == 8


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(hf_posswap.swap(gpt2(), "t5"), tmp_path, identity={"texts": ["a"]})
    with pytest.raises(TrainingCheckpointError, match="learning_rate was 0.01 there and is 0.5 now"):
        run(hf_posswap.swap(gpt2(), "t5"), tmp_path, resume=True, learning_rate=0.5, identity={"texts": ["a"]})
    with pytest.raises(TrainingCheckpointError, match=r"texts was \['a'\] there and is \['b'\] now"):
        run(hf_posswap.swap(gpt2(), "t5"), tmp_path, resume=True, identity={"texts": ["b"]})
    with pytest.raises(TrainingCheckpointError, match="does not fit the model"):
        run(gpt2(), tmp_path, resume=True, identity={"texts": ["a"]})


def test_the_state_file_says_what_the_run_is(tmp_path):
    run(hf_posswap.swap(gpt2(), "t5"), tmp_path, identity={"model": "m"})
    state = json.loads((checkpoints_in(tmp_path)[-1] / checkpoints.STATE).read_text())
    assert state["step"] == 8
    assert state["run"]["model"] == "m"
    assert state["run"]["options"]["steps"] == 8
    assert len(state["history"]) == 8


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_none_that_lacks_files(tmp_path, monkeypatch):
    removed = shutil.rmtree

    def die(path, **arguments):
        if "0000002" in path.name and path.exists():
            next(path.iterdir()).unlink()
            raise Interrupted
        removed(path, **arguments)

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(Interrupted):
        run(hf_posswap.swap(gpt2(), "alibi"), tmp_path, keep_checkpoints=1)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-0000004"]

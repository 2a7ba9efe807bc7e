"""Comparing schemes on one model: what is refused before anything long starts, and what comes out."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import hf_posswap
from hf_posswap.comparison import Observer, Settings, prepare, run, running
from hf_posswap.demo import load_model
from hf_posswap.errors import PosSwapError, UnsupportedError

SETTINGS = Settings(
    model="demo:gpt2", schemes=("alibi", "t5"), texts=("demo:book/test",), lengths=(128, 64, 512), tokens=1024
)


def changed(**values: Any) -> Settings:
    return dataclasses.replace(SETTINGS, **values)


class Recorder(Observer):
    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.read = 0
        self.done: list[str] = []

    def stage(self, scheme: str, stage: str) -> None:
        self.stages.append((scheme, stage))

    def tokens(self, count: int) -> None:
        self.read += count

    def scheme_done(self, scheme: str, rows: Sequence[dict[str, Any]]) -> None:
        self.done.append(scheme)


def test_stock_and_every_scheme_are_measured_by_both_protocols() -> None:
    recorder = Recorder()
    result = run(prepare(SETTINGS), recorder)
    rows = {(row["scheme"], row["protocol"], row["length"]): row for row in result["rows"]}
    assert len(rows) == 3 * 2 * 3
    assert result["train_length"] == 256
    assert rows["stock", "windows", 128]["loss"] < rows["alibi", "windows", 128]["loss"]
    assert rows["stock", "windows", 512]["note"] == "longest position 256"
    assert rows["alibi", "same-targets", 512]["loss"] is not None
    assert recorder.done == ["stock", "alibi", "t5"]
    assert recorder.stages[:3] == [("stock", "loading"), ("stock", "windows"), ("stock", "same-targets")]
    assert result["seed"] == 0
    assert result["environment"]["versions"]["torch"]
    assert len(result["texts"][0]["sha256"]) == 64


def test_the_same_seed_gives_the_same_numbers() -> None:
    def numbers(result: dict[str, Any]) -> list[object]:
        return [(row["loss"], row["loss_low"], row["loss_high"]) for row in result["rows"]]

    settings = changed(schemes=("transformer_xl",), lengths=(64,))
    assert numbers(run(prepare(settings))) == numbers(run(prepare(settings)))


def test_a_swap_that_is_refused_becomes_stated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: object, scheme: object) -> object:
        raise UnsupportedError("not with this model")

    monkeypatch.setattr(hf_posswap, "swap", refuse)
    result = run(prepare(changed(schemes=("alibi",), lengths=(64,))))
    refused = [row for row in result["rows"] if row["scheme"] == "alibi"]
    assert [row["note"] for row in refused] == ["not with this model"] * 2
    assert [row["loss"] for row in refused] == [None, None]


def test_an_unsupported_cell_is_known_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [
        dataclasses.replace(cell, supported=False, reason="because")
        if (cell.architecture, cell.mode, cell.scheme) == ("gpt2", "causal", "alibi")
        else cell
        for cell in hf_posswap.capabilities()
    ]
    monkeypatch.setattr(hf_posswap, "capabilities", lambda: cells)
    prepared = prepare(SETTINGS)
    assert [(refusal.scheme, refusal.reason) for refusal in prepared.refusals] == [("alibi", "because")]
    assert prepared.to_measure == ["stock", "t5"]
    with pytest.raises(UnsupportedError, match="can take none of the schemes:\n  alibi: because"):
        prepare(changed(schemes=("alibi",)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schemes": ("alibbi",)}, "Did you mean 'alibi'"),
        ({"schemes": ("alibi:nope=1",)}, "nope"),
        ({"schemes": ("alibi", "alibi")}, "scheme 'alibi' is given twice"),
        ({"texts": ("/no/such/book.txt",)}, "cannot read text '/no/such/book.txt'"),
        ({"texts": ()}, "no text given"),
        ({"lengths": ()}, "no length given"),
        ({"lengths": (1,)}, "length 1 is too short"),
        ({"lengths": (64, 10_000_000)}, "the text has 109905 tokens, and length 10000000 needs"),
        ({"tokens": 0}, "the budget is 0 tokens"),
        ({"model": "demo:bert"}, "is an encoder"),
        ({"model": "demo:mamba"}, "unknown demo model 'demo:mamba'"),
    ],
)
def test_wrong_settings_are_refused_before_the_model_loads(
    values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "load_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    with pytest.raises(PosSwapError, match=message):
        prepare(changed(**values))


def test_an_unsupported_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    from transformers import OPTConfig

    OPTConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"architecture 'opt' .* is not supported. Allowed: .*gpt2"):
        prepare(changed(model=str(tmp_path)))


def test_a_swapped_model_has_no_stock_to_compare_with(tmp_path: Path) -> None:
    hf_posswap.swap(load_model("demo:gpt2"), "alibi").save_pretrained(tmp_path)
    with pytest.raises(PosSwapError, match="is swapped already"):
        prepare(changed(model=str(tmp_path)))

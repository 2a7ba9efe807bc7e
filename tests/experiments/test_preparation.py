"""What is refused before anything long starts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import hf_posswap
from hf_posswap.errors import PosSwapError, UnsupportedError
from hf_posswap.experiments import preparation
from hf_posswap.experiments.cells import Cell
from hf_posswap.experiments.preparation import prepare
from hf_posswap.experiments.settings import recipe
from hf_posswap.sources import load_model
from tests.experiments.helpers import Make


def test_an_unsupported_cell_is_known_before_anything_is_loaded(changed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    known = preparation.capability

    def without_alibi(architecture: Any, causal: bool, scheme: Any) -> Any:
        found = known(architecture, causal, scheme)
        return dataclasses.replace(found, supported=False, reason="because") if scheme.name == "alibi" else found

    monkeypatch.setattr(preparation, "capability", without_alibi)
    prepared = prepare(changed())
    assert [(refusal.scheme, refusal.reason) for refusal in prepared.refusals] == [("alibi", "because")]
    assert prepared.work(Cell("alibi", "swapped", 0)) == 0 < prepared.work(Cell("t5", "swapped", 0))
    with pytest.raises(UnsupportedError, match="can take none of the schemes:\n  alibi: because"):
        prepare(changed(schemes=("alibi",)))


def test_work_counts_measuring_calibrating_and_healing(healed: Make) -> None:
    prepared = prepare(healed(healing=recipe(40_000, batch_size=4)))
    assert prepared.healing_length == prepared.train_length == 256
    measured = prepared.work(Cell("t5", "swapped", 0))
    assert measured == prepared.work(Cell("stock", "stock", 0)) == prepared.measure.tokens > 0
    assert prepared.work(Cell("t5", "calibrated", 0)) - measured == preparation.CALIBRATION_WORK * 512
    assert prepared.work(Cell("t5", "healed", 0)) - measured == preparation.HEALING_WORK * 256 * 4 * 39


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schemes": ("alibbi",)}, "Did you mean 'alibi'"),
        ({"schemes": ("alibi:nope=1",)}, "nope"),
        ({"schemes": ("alibi", "alibi")}, "scheme 'alibi' is given twice"),
        ({"schemes": ("alibi", "stock")}, "'stock' is measured beside every comparison"),
        ({"texts": ("/no/such/book.txt",)}, "cannot read text '/no/such/book.txt'"),
        ({"texts": ()}, "no text given"),
        ({"lengths": ()}, "no length given"),
        ({"lengths": (1,)}, "length 1 is too short"),
        ({"lengths": (64, 10_000_000)}, "the text has \\d+ tokens, and length 10000000 needs"),
        ({"tokens": 0}, "tokens is 0; it must be at least 1"),
        ({"model": "demo:mamba"}, "unknown demo model 'demo:mamba'"),
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"calibrate": True}, "there is no text to calibrate on"),
        ({"healing": recipe(1000)}, "there is no text to heal on"),
        ({"healing": recipe(1000), "calibrate": True}, "there is no text to calibrate and heal on"),
        ({"train_texts": ("demo:books/train",)}, "nothing would read the training text"),
        ({"control": True}, "the control is the stock model healed on the same tokens"),
    ],
)
def test_wrong_settings_are_refused_before_the_model_loads(
    changed: Make, values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "load_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    with pytest.raises(PosSwapError, match=message):
        prepare(changed(**values))


def test_an_unsupported_architecture_says_where_the_supported_ones_are(changed: Make, tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"'t5' is not supported: .*`hf-posswap matrix --families` lists"):
        prepare(changed(model=str(tmp_path)))


def test_a_swapped_model_has_no_stock_to_compare_with(changed: Make, tmp_path: Path) -> None:
    hf_posswap.swap(load_model("demo:gpt2"), "alibi").save_pretrained(tmp_path)
    with pytest.raises(PosSwapError, match="is swapped already"):
        prepare(changed(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_texts": ("demo:books",)}, "'test.txt' is measured on, and 'frankenstein.txt'"),
        ({"train_texts": ("demo:book/train", "/no/such/book.txt")}, "cannot read text '/no/such/book.txt'"),
        ({"dtype": "bfloat16"}, "a model healed in bfloat16 weights"),
        ({"calibration_tokens": 1}, "calibration_tokens is 1; it must be at least 2"),
    ],
)
def test_wrong_settings_of_healing_are_refused(healed: Make, values: dict[str, Any], message: str) -> None:
    with pytest.raises(PosSwapError, match=message):
        prepare(healed(**values))


def test_a_copy_of_a_measured_text_set_anew_is_no_training_text(healed: Make, tmp_path: Path) -> None:
    book = hf_posswap.texts.sources.resolve_texts("demo:book/test")[0].read()
    copied = tmp_path / "copied.txt"
    copied.write_text("An introduction.\n\n" + book.replace("\n", " ") + "\n\nThe end.", encoding="utf-8")
    with pytest.raises(PosSwapError, match=r"'test.txt' is measured on, and 'copied.txt', which is learned"):
        prepare(healed(train_texts=(str(copied),)))


def test_too_little_text_to_learn_from_says_how_much_there_is(healed: Make, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A short text.", encoding="utf-8")
    for settings in (healed(train_texts=(str(short),)), healed(train_texts=(str(short),), calibrate=False)):
        with pytest.raises(PosSwapError, match=r"the text has 5 tokens, less than one window of \d+"):
            prepare(settings)


def test_several_processes_are_refused(changed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PosSwapError, match="a comparison or a search runs in one process, and 2 were started"):
        prepare(changed())

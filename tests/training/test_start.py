"""What healing chooses for itself: what to learn from and at which rate, from how far the start is from stock."""

from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.training import start as start_module
from hf_posswap.training.adapters import add_lora
from hf_posswap.training.loop import heal
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.start import ADAPTER_RATE, ENCODER_RATE, FAR_RATE, NEAR_RATE, Start, measure_start
from hf_posswap.training.texts import Window
from tests.training.helpers import WordTokenizer, bert, gpt2, llama, text

TEXTS = [text(600)]
NEAR, FAR = Start(stock=3.0, swapped=3.5, bare=4.0), Start(stock=3.0, swapped=3.7, bare=4.0)


def run(model: Any, bert: bool = False, teacher: Any = None, **changes: Any) -> Any:
    settings = {"steps": 4, "length": 16, "batch_size": 2, "checkpoint_every": 0} | changes
    return heal(model, TEXTS, WordTokenizer(bert=bert), HealingOptions(**settings), teacher=teacher)


def test_the_start_is_measured_between_the_stock_model_and_one_without_positions() -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(20)
    windows = [Window(list(range(5, 21)), list(range(16))), Window(list(range(30, 46)), list(range(16)))]
    rows = torch.tensor([window.ids for window in windows])

    def loss(model: Any) -> float:
        return float(model(rows, labels=rows).loss)

    with torch.no_grad():
        stock = loss(model)
        bare = loss(hf_posswap.swap(gpt2_like(model), "none"))
        swapped = hf_posswap.swap(model, "alibi").train()
        found = measure_start(swapped, windows)
        assert swapped.training
        expected = loss(swapped.eval())
    assert (found.stock, found.swapped, found.bare) == pytest.approx((stock, expected, bare), abs=1e-5)
    assert found.missing == pytest.approx((expected - stock) / (bare - stock), abs=1e-4)


def gpt2_like(model: Any) -> Any:
    other = gpt2()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    ("start", "rate", "words"),
    [
        (NEAR, NEAR_RATE, ["logits=1"]),
        (FAR, FAR_RATE, ["logits=1"]),
    ],
)
def test_the_start_chooses_the_rate_and_the_supervision(
    start: Start, rate: float, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_module, "measure_start", lambda *_: start)
    report = run(hf_posswap.swap(llama(), "t5"))
    assert (report.learning_rate, report.supervision, report.start) == (rate, words, start)
    assert max(row["learning_rate"] for row in report.history) == rate
    assert report.to_dict()["start"] == {"stock": 3.0, "swapped": start.swapped, "bare": 4.0, "missing": start.missing}
    given = run(hf_posswap.swap(llama(), "t5"), learning_rate=1e-4, supervise=("labels",))
    assert (given.learning_rate, given.supervision, given.start) == (1e-4, ["labels=1"], None)


def test_positions_that_are_worth_nothing_are_not_missed() -> None:
    assert Start(stock=3.0, swapped=3.5, bare=2.9).is_near


def test_stock_models_adapters_and_encoders_have_their_own_defaults() -> None:
    control = run(gpt2())
    assert (control.learning_rate, control.supervision, control.start) == (NEAR_RATE, ["labels=1"], None)
    assert run(add_lora(hf_posswap.swap(llama(), "t5"), rank=2)).learning_rate == ADAPTER_RATE
    for head in (True, False):
        report = run(hf_posswap.swap(bert(head=head), "rope"), bert=True)
        assert (report.learning_rate, report.supervision) == (ENCODER_RATE, ["logits=1", "hidden=10"])


def test_a_healed_model_learns_from_a_stock_model_that_is_given_or_from_the_text() -> None:
    model = hf_posswap.swap(gpt2(), "t5")
    run(model)
    assert run(model).supervision == ["labels=1"]
    with pytest.raises(HealingError, match=r"healed before.*pass it as teacher="):
        run(model, supervise=("logits",))
    report = run(model, teacher=gpt2())
    assert (report.supervision, report.start, report.learning_rate) == (["logits=1"], None, NEAR_RATE)

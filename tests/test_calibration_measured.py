"""What calibration is judged by, on which texts, and what becomes of a fit that makes a model worse."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hf_posswap
from hf_posswap.calibration import CalibrationWarning, Yardstick, calibrate, document_windows, run
from hf_posswap.calibration.texts import hold_back, together
from hf_posswap.errors import UnsupportedError
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.swapped.plan import core_of
from hf_posswap.texts.sources import resolve_texts
from tests import proteins
from tests.matrix.cells import random_tokens, small_model

KINDS = [
    ("gpt2", True, "loss"),
    ("bert", True, "loss"),
    ("llama", True, "loss"),
    ("bert", False, "masked loss"),
]


class Masks:
    """What calibration uses of a tokenizer."""

    mask_token_id, all_special_ids = 3, [0, 1, 2, 3]


def texts(count: int = 9, length: int = 16) -> list[Tensor]:
    return [random_tokens(1, length, seed) for seed in range(count)]


@pytest.mark.parametrize(("family", "causal", "quantity"), KINDS)
def test_a_model_is_measured_by_what_it_is_for(family: str, causal: bool, quantity: str) -> None:
    model = hf_posswap.swap(small_model(family, causal), "relative_bias")
    assert Yardstick(model, texts(2), Masks()).quantity == quantity
    assert Yardstick(model.base_model, texts(2), Masks()).quantity == "agreement"
    if quantity == "masked loss":
        assert Yardstick(model, texts(2)).quantity == "agreement"


def test_the_masked_loss_is_that_of_the_tokens_it_hides() -> None:
    model = hf_posswap.swap(small_model("bert", False), "relative_bias").eval()
    read = [random_tokens(2, 20), random_tokens(1, 9, 5)]
    yardstick = Yardstick(model, read, Masks())
    losses = []
    with torch.no_grad():
        for text, (hidden, chosen) in zip(read, yardstick._masked, strict=True):
            assert torch.equal(hidden[~chosen], text[~chosen])
            assert bool((hidden[chosen] == 3).all())
            assert not bool(torch.isin(text[chosen], torch.tensor(Masks.all_special_ids)).any())
            losses.append(F.cross_entropy(model(hidden).logits[chosen], text[chosen], reduction="none"))
    assert len(torch.cat(losses)) == sum(round(0.15 * int((row > 3).sum())) for text in read for row in text)
    assert yardstick.measure(model) == pytest.approx(float(torch.cat(losses).mean()), abs=1e-6)
    assert yardstick.stock != yardstick.measure(model)


def test_agreement_is_the_cosine_of_mean_pooled_embeddings() -> None:
    stock, model = (small_model("bert", False).base_model.eval() for _ in range(2))
    hf_posswap.swap(model, "relative_bias")
    (read,) = texts(1)
    yardstick = Yardstick(model, [read])
    with torch.no_grad():
        own, theirs = (m(read).last_hidden_state.mean(1) for m in (model, stock))
    assert yardstick.stock == pytest.approx(0.0, abs=1e-6)
    assert yardstick.measure(model) == pytest.approx(1 - float(F.cosine_similarity(own, theirs)), abs=1e-6)


@pytest.mark.parametrize("scheme", ["relative_bias", "t5", "shaw", "rope"])
@pytest.mark.parametrize(("family", "causal"), [("gpt2", True), ("bert", False)])
@pytest.mark.parametrize("headless", [False, True])
def test_a_fit_that_makes_a_model_worse_is_taken_back_bit_for_bit(
    family: str, causal: bool, headless: bool, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = small_model(family, causal)
    model = hf_posswap.swap(loaded.base_model if headless else loaded, scheme)
    values = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(Yardstick, "measure", lambda *_: next(values))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(
        CalibrationWarning, match=r"made the model worse: on \d+ tokens held back.*start is kept"
    ) as seen:
        report = calibrate(model, texts(), tokenizer=Masks())
    assert seen[0].filename == __file__
    assert report.kept_start
    assert (report.loss_stock, report.loss_before, report.loss_after) == (1.0, 2.0, 3.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("scheme", ["rope", "t5"])
def test_on_real_weights_of_an_embedding_model(scheme: str) -> None:
    """MiniLM's layers want curves of their own: one table of T5's for all of them takes the embeddings further away."""
    model = hf_posswap.swap(load_model("demo:bert"), scheme)
    text = resolve_texts("demo:book/train")[0].read()[:6000]
    windows = document_windows(load_tokenizer("demo:bert"), [text], 128)
    if scheme == "rope":
        report = calibrate(model, windows)
        assert (report.quantity, report.kept_start) == ("agreement", False)
        assert report.loss_stock == pytest.approx(0.0, abs=1e-5)
        assert report.loss_after < report.loss_before
        return
    with pytest.warns(CalibrationWarning, match="cosine of its embeddings to the stock model's falls from"):
        assert calibrate(model, windows).kept_start
    assert not bool(core_of(model).pos_scheme.table.any())


def test_a_fit_that_makes_it_better_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(Yardstick, "measure", lambda *_: next(values))
    model = hf_posswap.swap(small_model("bert", False), "relative_bias")
    report = calibrate(model, texts(), tokenizer=Masks())
    assert (report.loss_stock, report.loss_before, report.loss_after, report.kept_start) == (1.0, 3.0, 2.0, False)
    assert any(bool(w.any()) for name, w in model.named_parameters() if "pos_scheme" in name)


def test_an_error_on_the_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_posswap.swap(small_model("gpt2", True), "relative_bias")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise UnsupportedError("enough")

    with pytest.raises(UnsupportedError, match="enough"):
        calibrate(model, texts(), progress=stop)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_measured_on_is_not_fitted_to() -> None:
    read = texts(20)
    fitted, held = hold_back(read)
    assert len(held) == 2
    rows = {tuple(row.tolist()) for text in fitted for row in text}
    assert rows | {tuple(row.tolist()) for text in held for row in text} == {tuple(text[0].tolist()) for text in read}
    assert not rows & {tuple(row.tolist()) for text in held for row in text}
    model = hf_posswap.swap(small_model("gpt2", True), "relative_bias")
    report = calibrate(model, read)
    assert (report.tokens, report.held_back) == (18 * 16, 2 * 16)
    assert hold_back(read[:4]) == (read[:4], [])


def test_short_texts_are_read_together_and_long_ones_as_they_came() -> None:
    lengths = [16, 4, 5, 4, 16, 5, 4, 4, 4]
    read = [random_tokens(1, length, seed) for seed, length in enumerate(lengths)]
    batches = together(read)
    assert [tuple(batch.shape) for batch in batches] == [(1, 16), (1, 16), (4, 4), (1, 4), (2, 5)]
    rows = sorted(tuple(row.tolist()) for batch in batches for row in batch)
    assert rows == sorted(tuple(text[0].tolist()) for text in read)


def explained_and_tables(batches: list[Tensor]) -> tuple[Any, list[Tensor]]:
    model = hf_posswap.swap(small_model("bert", False), "relative_bias")
    report = calibrate(model, batches, measure=False)
    return report.explained, [w for name, w in model.named_parameters() if "pos_scheme" in name]


def test_texts_read_together_are_fitted_as_texts_read_alone() -> None:
    read = [random_tokens(1, length, seed) for seed, length in enumerate([12, 5, 5, 7, 5, 7])]
    own, tables = explained_and_tables(read)
    batched, others = explained_and_tables([read[0], torch.cat([read[n] for n in (1, 2, 4)]), torch.cat(read[3::2])])
    assert torch.tensor(own) == pytest.approx(torch.tensor(batched), abs=1e-4)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(tables, others, strict=True))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("scheme", ["relative_bias", "t5:per_layer=true", "kerple", "shaw", "rope"])
@pytest.mark.filterwarnings("ignore::hf_posswap.calibration.CalibrationWarning")
def test_a_list_of_many_short_texts_calibrates(head: bool, scheme: str, tmp_path: Any) -> None:
    folder = proteins.write(tmp_path, head)
    auto = hf_posswap.AutoModelForMaskedLM if head else hf_posswap.AutoModel
    lines = proteins.sequences(1500 if head and scheme == "relative_bias" else 60)
    reports = []
    keep = run.CalibrationReport
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CalibrationReport", lambda **fields: reports.append(keep(**fields)) or reports[-1])
        model = auto.from_pretrained(folder, pos_scheme=scheme, calibration=lines)
    (report,) = reports
    assert report.tokens + report.held_back == sum(len(line) + 2 for line in lines)
    assert report.quantity == ("masked loss" if head else "agreement")
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert dataclasses.asdict(report)["kept_start"] in (True, False)


def test_windows_of_documents_never_hold_two_of_them() -> None:
    tokenizer = proteins.tokenizer()
    lines = [*proteins.sequences(5), proteins.sequence(100, 3)]
    windows = document_windows(tokenizer, lines, 64)
    texts_read = ["".join(tokenizer.convert_ids_to_tokens(window[0, 1:-1].tolist())) for window in windows]
    assert texts_read == [*(line[:62] for line in lines[:5]), lines[5][:62]]

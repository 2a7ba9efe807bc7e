"""Loss by position: against the obvious loop, and against the loss of whole windows."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_posswap.evaluation import EvaluationError, loss_by_position
from hf_posswap.evaluation.perplexity import perplexity_rows
from hf_posswap.evaluation.positions import position_rows, rows_by_position
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.texts.sources import resolve_texts


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    return load_model("demo:gpt2")


@pytest.fixture(scope="module")
def book() -> Tensor:
    text = resolve_texts("demo:book/test")[0].read()[:20_000]
    return torch.tensor(load_tokenizer("demo:gpt2")(text, verbose=False)["input_ids"])


def test_agrees_with_the_obvious_loop(gpt2: nn.Module, book: Tensor) -> None:
    ids = book[:128]
    rows = position_rows(gpt2, ids, [64], bins=4, budget=128)
    with torch.no_grad():
        logits = gpt2(ids.view(2, 64)).logits
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids.view(2, 64)[:, 1:].flatten(), reduction="none")
    losses = losses.view(2, 63)
    assert [(row.position_from, row.position_to, row.tokens) for row in rows] == [
        (0, 16, 30), (16, 32, 32), (32, 48, 32), (48, 64, 32),
    ]  # fmt: skip
    for row in rows:
        expected = losses[:, max(row.position_from - 1, 0) : row.position_to - 1].mean().item()
        assert row.loss == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("length", [2, 3, 100, 256])
def test_all_positions_together_are_the_loss_of_the_windows(gpt2: nn.Module, book: Tensor, length: int) -> None:
    (whole,) = perplexity_rows(gpt2, book, [length], ("windows",), budget=512)
    rows = position_rows(gpt2, book, [length], budget=512)
    assert [row.position_to for row in rows[:-1]] == [row.position_from for row in rows[1:]]
    assert (rows[0].position_from, rows[-1].position_to) == (0, length)
    assert sum(row.tokens for row in rows) == whole.tokens
    assert all(row.tokens for row in rows)
    assert sum(row.loss * row.tokens for row in rows) / whole.tokens == pytest.approx(whole.loss, abs=1e-9)


def test_a_length_past_the_longest_position_is_a_stated_gap(gpt2: nn.Module, book: Tensor) -> None:
    frame = loss_by_position(gpt2, book, [64, 300], bins=2, budget=300)
    assert frame["length"].tolist() == [64, 64, 300]
    assert frame["loss"].isna().tolist() == [False, False, True]
    assert frame["note"].tolist() == ["", "", "longest position 256"]


def test_positions_whose_loss_is_not_finite_are_gaps_and_the_others_are_not() -> None:
    losses = torch.ones(2, 7)
    losses[0, 5] = float("nan")
    first, last = rows_by_position(8, list(losses), bins=2)
    assert (first.loss, first.note) == (1.0, "")
    assert (last.loss, last.tokens, last.note) == (None, 0, "the loss is nan")


def test_no_bin_is_refused(gpt2: nn.Module, book: Tensor) -> None:
    with pytest.raises(EvaluationError, match="number of bins is 0"):
        position_rows(gpt2, book, [64], bins=0, budget=64)

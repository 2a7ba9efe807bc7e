"""Loss against length, on real weights, against the obvious loop."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertLMHeadModel, BertModel

import hf_posswap
from hf_posswap.evaluation import EvaluationError, TextTooShortError, perplexity_by_length
from hf_posswap.evaluation.frames import to_frame
from hf_posswap.evaluation.perplexity import LengthRow, perplexity_rows, planned_tokens
from hf_posswap.evaluation.token_loss import find_head, token_losses
from hf_posswap.evaluation.windows import PROTOCOLS, plan
from hf_posswap.sources import ModelSource, load_model, load_tokenizer
from hf_posswap.texts.sources import resolve_texts


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    return load_model("demo:gpt2")


@pytest.fixture(scope="module")
def book() -> Tensor:
    text = resolve_texts("demo:book/test")[0].read()[:60_000]
    return torch.tensor(load_tokenizer("demo:gpt2")(text, verbose=False)["input_ids"])


def obvious_loop(model: nn.Module, ids: Tensor, protocol: str, length: int, lengths: list[int], budget: int) -> float:
    """Token-weighted mean of `model(ids, labels=…).loss`, window by window."""
    total, tokens = 0.0, 0
    for window in plan(protocol, len(ids), lengths, budget)[length]:
        part = ids[window.start : window.stop].unsqueeze(0)
        labels = part.clone()
        labels[:, : window.first_target - window.start] = -100
        with torch.no_grad():
            total += model(part, labels=labels).loss.item() * window.targets
        tokens += window.targets
    return total / tokens


def test_more_context_helps_a_model_within_its_train_length(gpt2: nn.Module, book: Tensor) -> None:
    short, long = perplexity_rows(gpt2, book, [16, 256], ("same-targets",), budget=4096)
    assert short.tokens == long.tokens
    assert long.loss < short.loss


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_agrees_with_the_obvious_loop(gpt2: nn.Module, book: Tensor, protocol: str) -> None:
    lengths, budget = [32, 100, 256], 2048
    rows = perplexity_rows(gpt2, book, lengths, (protocol,), budget=budget)
    assert [row.length for row in rows] == lengths
    for row in rows:
        assert row.loss == pytest.approx(obvious_loop(gpt2, book, protocol, row.length, lengths, budget), abs=1e-4)
        assert row.perplexity == pytest.approx(math.exp(row.loss))
        assert row.loss_low < row.loss < row.loss_high


@pytest.mark.slow
def test_agrees_with_the_obvious_loop_on_a_real_llama(smollm2_source: ModelSource) -> None:
    model = load_model("demo:llama")
    text = resolve_texts("demo:book/test")[0].read()[:8000]
    ids = torch.tensor(load_tokenizer("demo:llama")(text, verbose=False)["input_ids"])
    rows = perplexity_rows(model, ids, [128, 256], ("windows",), budget=512)
    for row in rows:
        assert row.loss == pytest.approx(obvious_loop(model, ids, "windows", row.length, [128, 256], 512), abs=1e-4)
    assert rows[0].perplexity < 100, "a real model, reading real text"


def test_a_head_that_is_a_network_is_found(minilm_path: Path) -> None:
    """BERT's head transforms before it embeds: its output embedding alone would give other logits."""
    model = BertLMHeadModel.from_pretrained(minilm_path, is_decoder=True).eval()
    ids = torch.arange(1000, 1100)
    (row,) = perplexity_rows(model, ids, [50], ("windows",), budget=100)
    assert row.loss == pytest.approx(obvious_loop(model, ids, "windows", 50, [50], 100), abs=1e-4)


@pytest.mark.parametrize("setting", [{"batch_tokens": 1}, {"positions_per_chunk": 7}, {"batch_tokens": 10_000}])
def test_how_much_is_computed_at_once_changes_nothing(gpt2: nn.Module, book: Tensor, setting: dict[str, int]) -> None:
    (usual,) = perplexity_rows(gpt2, book, [64], ("windows",), budget=512)
    (other,) = perplexity_rows(gpt2, book, [64], ("windows",), budget=512, **setting)
    assert other.loss == pytest.approx(usual.loss, abs=1e-5)


def test_the_head_never_sees_more_positions_than_a_chunk(gpt2: nn.Module, book: Tensor) -> None:
    seen: list[int] = []
    handle = gpt2.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output[..., 0].numel()))
    try:
        perplexity_rows(gpt2, book, [256], budget=1024, positions_per_chunk=50)
    finally:
        handle.remove()
    assert max(seen) == 50


def test_a_length_past_the_longest_position_is_a_stated_gap(gpt2: nn.Module, book: Tensor) -> None:
    assert hf_posswap.longest_position(gpt2) == 256
    reads, gap = perplexity_rows(gpt2, book, [256, 257], ("windows",), budget=600)
    assert reads.loss is not None
    assert reads.note == ""
    assert (gap.length, gap.loss, gap.perplexity, gap.tokens) == (257, None, None, 0)
    assert gap.note == "longest position 256"


def test_several_texts_are_weighted_by_their_tokens(gpt2: nn.Module, book: Tensor) -> None:
    one, two = book[:256], book[3000:3256]
    (both,) = perplexity_rows(gpt2, [one, two], [128], ("windows",), budget=512)
    (first,) = perplexity_rows(gpt2, one, [128], ("windows",), budget=256)
    (second,) = perplexity_rows(gpt2, two, [128], ("windows",), budget=256)
    assert both.tokens == first.tokens + second.tokens
    weighted = (first.loss * first.tokens + second.loss * second.tokens) / both.tokens
    assert both.loss == pytest.approx(weighted, abs=1e-6)


def test_lists_of_integers_are_texts_too(gpt2: nn.Module, book: Tensor) -> None:
    (as_list,) = perplexity_rows(gpt2, book[:200].tolist(), [64], ("windows",), budget=128)
    (as_tensor,) = perplexity_rows(gpt2, book[:200], [64], ("windows",), budget=128)
    assert as_list.loss == as_tensor.loss


def test_the_same_seed_gives_the_same_rows(gpt2: nn.Module, book: Tensor) -> None:
    def measure(seed: int) -> list[object]:
        rows = perplexity_rows(gpt2, book, [64, 128], budget=1024, seed=seed)
        return [(row.loss, row.loss_low, row.loss_high) for row in rows]

    assert measure(3) == measure(3)
    assert measure(3) != measure(4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_of_the_lengths_can_be_measured_on_the_targets_of_all(gpt2: nn.Module, book: Tensor, protocol: str) -> None:
    read: list[int] = []
    rows = perplexity_rows(gpt2, book, [32, 100, 256], (protocol,), budget=1024)
    (alone,) = perplexity_rows(gpt2, book, [32, 100, 256], (protocol,), budget=1024, only=(100,), progress=read.append)
    whole = next(row for row in rows if row.length == 100)
    assert dataclasses.replace(alone, seconds=whole.seconds) == whole
    assert 0 < sum(read) < planned_tokens([len(book)], [32, 100, 256], protocol, 1024)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_progress_adds_up_to_what_was_planned(gpt2: nn.Module, book: Tensor, protocol: str) -> None:
    read: list[int] = []
    perplexity_rows(gpt2, book, [32, 64], (protocol,), budget=512, progress=read.append)
    assert sum(read) == planned_tokens([len(book)], [32, 64], protocol, 512)


def test_the_model_is_left_in_its_mode(gpt2: nn.Module, book: Tensor) -> None:
    gpt2.train()
    try:
        perplexity_rows(gpt2, book, [64], budget=64)
        assert gpt2.training
    finally:
        gpt2.eval()


def test_python_gets_a_data_frame_of_both_protocols(gpt2: nn.Module, book: Tensor) -> None:
    frame = perplexity_by_length(gpt2, book, [64, 300], budget=300)
    assert frame["protocol"].tolist() == ["windows", "windows", "same-targets", "same-targets"]
    assert frame["length"].tolist() == [64, 300, 64, 300]
    assert frame["loss"].isna().tolist() == [False, True, False, True]
    assert frame["note"].tolist() == ["", "longest position 256"] * 2


def test_no_rows_become_an_empty_data_frame_with_columns() -> None:
    assert "perplexity" in to_frame([], LengthRow).columns


def test_without_pandas_nothing_long_begins(gpt2: nn.Module, book: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EvaluationError, match=r'pip install "hf_posswap\[evaluate\]"'):
        perplexity_by_length(gpt2, book, [64], progress=lambda count: pytest.fail("the model was read"))


def test_a_text_too_short_is_refused(gpt2: nn.Module, book: Tensor) -> None:
    with pytest.raises(TextTooShortError, match="the text has 10 tokens"):
        perplexity_rows(gpt2, book[:10], [64])


def test_no_text_is_refused(gpt2: nn.Module) -> None:
    with pytest.raises(EvaluationError, match="no text given"):
        perplexity_rows(gpt2, [], [64])


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ("Some text.", "the texts are a str"),
        ({"input_ids": [1, 2]}, "the texts are a dict"),
        (["Some text."], "a text is a str"),
        (5, "the texts are a int"),
        (torch.rand(100), r"a text is of shape \(100,\) and torch.float32"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"a text is of shape \(2, 3\)"),
    ],
)
def test_what_is_no_token_ids_is_refused(gpt2: nn.Module, texts: Any, found: str) -> None:
    with pytest.raises(EvaluationError, match=rf"{found}.* Give token ids, integers in one dimension"):
        perplexity_rows(gpt2, texts, [64])


def test_one_length_still_is_a_list(gpt2: nn.Module, book: Tensor) -> None:
    with pytest.raises(EvaluationError, match=r"lengths is 64. Give a list of numbers of tokens, such as \[256\]"):
        perplexity_rows(gpt2, book, 64)


def test_a_model_without_a_head_is_refused(minilm_path: Path, book: Tensor) -> None:
    with pytest.raises(EvaluationError, match="BertModel has no language-model head"):
        perplexity_rows(BertModel.from_pretrained(minilm_path), book, [64])


def test_an_encoder_is_refused(minilm_path: Path, book: Tensor) -> None:
    model = BertLMHeadModel.from_pretrained(minilm_path)
    with pytest.raises(EvaluationError, match="it reads in both directions"):
        perplexity_rows(model, book, [64])


def changing(change: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The small GPT-2, whose logits are changed after its head."""
    model = load_model("demo:gpt2")
    forward: Callable[..., Any] = model.forward

    def changed(input_ids: Tensor, **kwargs: Any) -> Any:
        output = forward(input_ids, **kwargs)
        output.logits = change(output.logits, input_ids)
        return output

    model.forward = changed
    return model


def test_a_head_that_does_more_than_project_counts_as_it_is(book: Tensor) -> None:
    """A model that scales its logits after its head must not be measured without the scaling."""
    model = changing(lambda logits, ids: logits * 0.5)
    with torch.no_grad():
        logits = model(book[:64][None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], book[1:64], reduction="none")
    actual = token_losses(model, find_head(model), book[:64][None], 1, positions_per_chunk=10)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_head_that_reads_more_than_the_last_hidden_states_is_refused(book: Tensor) -> None:
    model = changing(lambda logits, ids: logits * (1 + ids[:, :1, None] % 5))
    with pytest.raises(EvaluationError, match="its logits are not made from its last hidden states alone"):
        perplexity_rows(model, book, [64])


def test_a_loss_that_is_not_finite_is_a_stated_gap(book: Tensor) -> None:
    model = load_model("demo:gpt2")
    with torch.no_grad():
        # Position 100 is past the probe and within the length: only the measurement meets it.
        model.transformer.wpe.weight[100] = float("nan")
    (row,) = perplexity_rows(model, book, [128], ("windows",), budget=256)
    assert row.loss is None
    assert row.note == "the loss is nan"

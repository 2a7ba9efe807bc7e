"""Coordinates of heads for rotary schemes: the stock model stays what it is, and slow pairs hold what heads read."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hf_posswap
from hf_posswap.calibration import calibrate, calibration_refusal
from hf_posswap.calibration.alignment import balanced
from hf_posswap.demo import load_model, load_tokenizer, resolve_texts
from hf_posswap.errors import UnsupportedError
from hf_posswap.training.adapters import add_lora
from hf_posswap.training.texts import Windows
from tests.matrix.cells import random_tokens, small_model

CELLS = [("gpt2", True), ("bert", False)]
SCHEMES = ["rope", "rope:interleaved=true", "rope:partial_rotary_factor=0.5", "rope:yarn"]


def order_of(scheme: str) -> list[int]:
    """The steady dimensions of a scheme in a small GPT-2."""
    order = hf_posswap.swap(small_model("gpt2", True), scheme).base_model.pos_scheme.steady_dimensions()
    assert order is not None
    return order.tolist()


def test_the_steadiest_dimensions_come_first() -> None:
    head_dim = len(order_of("rope"))
    half = head_dim // 2
    assert order_of("rope") == [n + side for n in reversed(range(half)) for side in (0, half)]
    assert order_of("rope:interleaved=true") == [2 * n + side for n in reversed(range(half)) for side in (0, 1)]
    quarter = half // 2
    still = list(range(half, head_dim))
    turning = [n + side for n in reversed(range(quarter)) for side in (0, quarter)]
    assert order_of("rope:partial_rotary_factor=0.5") == still + turning


def test_schemes_that_treat_dimensions_alike_say_so() -> None:
    for scheme in ("alibi", "t5", "sinusoidal", "none"):
        assert hf_posswap.swap(small_model("gpt2", True), scheme).base_model.pos_scheme.steady_dimensions() is None


def lively_model(architecture: str, causal: bool) -> Any:
    """A small model whose heads read: weights and biases as large as trained ones'."""
    model = small_model(architecture, causal)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


def random_moments(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(3, 8, 12, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, 8)[:, None]
    return root @ root.mT / 12


def test_balanced_coordinates_keep_scores_and_share_their_moments() -> None:
    query, key = random_moments(0), random_moments(1)
    a, b = balanced(query, key)
    torch.testing.assert_close(a.mT @ b, torch.eye(8, dtype=torch.float64).expand(3, 8, 8), atol=1e-8, rtol=0)
    moments = a @ query @ a.mT
    torch.testing.assert_close(moments, b @ key @ b.mT, atol=1e-10, rtol=1e-6)
    diagonal = moments.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(moments, torch.diag_embed(diagonal), atol=1e-8, rtol=0)
    assert bool((diagonal.diff(dim=1) <= 0).all())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("architecture", "causal"), CELLS)
def test_the_stock_model_stays_what_it_is(architecture: str, causal: bool, scheme: str) -> None:
    model = lively_model(architecture, causal)
    tokens = random_tokens(2, 24)
    with torch.no_grad():
        stock = model(tokens)[0]
        hf_posswap.swap(model, scheme)
        before = model(tokens)[0]
        report = calibrate(model, [tokens], measure=False)
        after = model(tokens)[0]
        restored = hf_posswap.restore(model)(tokens)[0]
    scale = float(stock.abs().max())
    assert float((restored - stock).abs().max()) < 1e-4 * scale
    assert float((after - before).abs().max()) > 1e-3 * scale
    assert len(report.explained) == 3


@pytest.mark.parametrize(("architecture", "causal"), CELLS)
def test_slow_pairs_hold_what_heads_read(architecture: str, causal: bool) -> None:
    model = hf_posswap.swap(lively_model(architecture, causal), "rope")
    tokens = random_tokens(4, 32)
    calibrate(model, [tokens], measure=False)
    base: Any = model.base_model
    _, attention = base.architecture.blocks(base)[0]
    found = []
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(tokens)
        q, k, _ = base.architecture.project(attention, found[0])
    order = base.pos_scheme.steady_dimensions()
    for vectors in (q, k - k.mean((0, 2), keepdim=True)):
        energy = vectors.square().mean((0, 2))[:, order]
        assert bool((energy[:, 1:] <= energy[:, :-1] * 1.01).all())
    assert float(k.mean((0, 2)).abs().max()) < 1e-4


def test_what_has_no_coordinates_to_choose_is_refused() -> None:
    llama = hf_posswap.swap(small_model("llama", True), "rope:yarn")
    kept = hf_posswap.swap(small_model("gpt2", True), "rope:keep_native=true")
    adapted = add_lora(hf_posswap.swap(small_model("gpt2", True), "rope"), rank=2)
    for model in (llama, kept, adapted):
        with pytest.raises(UnsupportedError, match="'rope' has no parameters that calibration can fit"):
            calibrate(model, [random_tokens(1, 8)])
    assert calibration_refusal(hf_posswap.swap(small_model("gpt2", True), "rope")) is None


@torch.no_grad()
def test_on_real_weights_an_encoder_keeps_more_of_its_embeddings() -> None:
    tokenizer, stock = load_tokenizer("demo:bert"), load_model("demo:bert", auto_class=hf_posswap.AutoModel).eval()
    model = hf_posswap.swap(load_model("demo:bert", auto_class=hf_posswap.AutoModel).eval(), "rope")
    train, test = (
        list(
            itertools.islice(
                Windows([resolve_texts(name)[0].read()[:20000]], tokenizer, 128, packing=False).whole(), 16
            )
        )
        for name in ("demo:book/train", "demo:book/test")
    )
    ids = torch.cat(test)

    def cosine() -> float:
        mine, theirs = (m(ids).last_hidden_state.mean(1) for m in (model, stock))
        return float(F.cosine_similarity(mine, theirs).mean())

    swapped = cosine()
    calibrate(model, train)
    assert cosine() > swapped + 0.1
    difference = hf_posswap.restore(model)(ids).last_hidden_state - stock(ids).last_hidden_state
    assert float(difference.abs().max()) < 1e-4

"""Rotary schemes: other coordinates of heads and a vector all keys share, which the stock model does not notice."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hf_posswap
from hf_posswap.architectures import Architecture
from hf_posswap.calibration import FitSettings, Projections, calibrate, calibration_refusal, compared_queries
from hf_posswap.calibration.alignment import Coordinates, balanced
from hf_posswap.calibration.fitting import mismatch
from hf_posswap.calibration.key_shift import key_shift
from hf_posswap.calibration.streams import enter, projected, projections, turned_units
from hf_posswap.errors import UnsupportedError
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.swapped.applying import natively
from hf_posswap.texts.sources import resolve_texts
from hf_posswap.training.adapters import add_lora
from hf_posswap.training.texts import Windows
from tests.matrix.cells import random_tokens, randomise, small_model

CELLS = [("gpt2", True), ("bert", False)]
SCHEMES = ["rope", "rope:interleaved=true", "rope:partial_rotary_factor=0.5", "rope:yarn", "rope:dynamic"]


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


def first_layer(model: Any) -> tuple[Architecture, Any, Any]:
    architecture = model.base_model.architecture
    return (architecture, *architecture.blocks(model.base_model)[0])


def projected_in(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The queries and keys of a model's first layer, before its scheme."""
    _, block, attention = first_layer(model)
    return projected(block, attention, enter(model.base_model, [block], tokens))


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "causal"), CELLS)
def test_slow_pairs_hold_what_heads_read(architecture: str, causal: bool) -> None:
    model, tokens = hf_posswap.swap(lively_model(architecture, causal), "rope"), random_tokens(4, 32)
    order = model.base_model.pos_scheme.steady_dimensions()
    before = projected_in(model, tokens)
    coordinates = Coordinates(first_layer(model)[0], first_layer(model)[2])
    coordinates.align([before], order)
    q, k = projected_in(model, tokens)
    for vectors in (q, k):
        energy = vectors.square().mean((0, 2))[:, order]
        assert bool((energy[:, 1:] <= energy[:, :-1] * 1.01).all())
    assert float(k.mean((0, 2)).abs().max()) < 1e-4
    coordinates.put_back(torch.tensor([True, False, True, False]))
    for old, new, mixed in zip(before, (q, k), projected_in(model, tokens), strict=True):
        torch.testing.assert_close(mixed[:, ::2], old[:, ::2], atol=1e-5, rtol=1e-5)
        assert torch.equal(mixed[:, 1::2], new[:, 1::2])
    coordinates.put_back(torch.ones(4, dtype=torch.bool))
    for old, again in zip(before, projected_in(model, tokens), strict=True):
        assert torch.equal(old, again)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["rope", "rope:base=2", "rope:dynamic"])
@pytest.mark.parametrize(("architecture", "causal"), CELLS)
def test_no_head_is_further_from_the_stock_scores_than_before(architecture: str, causal: bool, scheme: str) -> None:
    model, tokens = hf_posswap.swap(lively_model(architecture, causal), scheme), random_tokens(3, 24)
    family, block, attention = first_layer(model)

    def distance() -> Tensor:
        with natively(model.base_model, family):
            teacher = enter(model.base_model, [block], tokens)
        streams = (teacher, enter(model.base_model, [block], tokens))
        sample = projections(model.base_model, family, block, attention, *streams)
        return mismatch([sample], causal, FitSettings())

    before = distance()
    calibrate(model, [tokens], measure=False)
    assert bool((distance() <= before * (1 + 1e-5)).all())


def test_the_mismatch_is_the_variance_of_differences_in_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    stock, swapped = (torch.randn(1, 2, 2, 8, 4, generator=generator) for _ in range(2))
    compared = compared_queries(8)
    sample = Projections(stock[:, 0][:, :, compared], stock[:, 1], swapped[:, 0][:, :, compared], swapped[:, 1], 0.5)
    found = mismatch([sample], True, FitSettings(0.0, 0.0, 1.0))
    for head in range(2):
        expected = 0.0
        for query in compared.tolist():
            theirs, mine = ((x[0, 0, head, query] @ x[0, 1, head].T).tolist() for x in (stock, swapped))
            row = [0.5 * (theirs[key] - mine[key]) for key in range(query + 1)]
            mean = sum(row) / len(row)
            expected += sum((value - mean) ** 2 for value in row) / len(row)
        assert float(found[head]) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scheme", [*SCHEMES, "rope:frequencies=fope:fourier_sums=true:base=10"])
def test_turned_units_are_what_the_scheme_makes_of_any_key(scheme: str) -> None:
    model, tokens = hf_posswap.swap(lively_model("gpt2", True), scheme), random_tokens(1, 24)
    randomise(model)
    architecture, block, attention = first_layer(model)
    stream = enter(model.base_model, [block], tokens)
    _, k = projected(block, attention, stream)
    turned = projections(model.base_model, architecture, block, attention, stream, stream).swapped_key
    units = turned_units(attention, stream, k.shape[-1], k.shape[1])
    assert len(units) == (k.shape[1] if "sums" in scheme else 1)
    turned_keys = torch.einsum("bhle,hled->bhld", k, units.expand(k.shape[1], -1, -1, -1))
    torch.testing.assert_close(turned_keys, turned, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_keys_that_are_turned_after_the_cache_are_compared_as_turned() -> None:
    """Within the train length `dynamic` turns as plain RoPE does, only later: calibration has to see the same keys."""
    keys = {}
    for scheme in ("rope", "rope:dynamic", "none"):
        model, tokens = hf_posswap.swap(lively_model("gpt2", True), scheme), random_tokens(1, 16)
        assert hf_posswap.train_length(model) >= 16
        architecture, block, attention = first_layer(model)
        stream = enter(model.base_model, [block], tokens)
        keys[scheme] = projections(model.base_model, architecture, block, attention, stream, stream).swapped_key
    torch.testing.assert_close(keys["rope:dynamic"], keys["rope"])
    assert not torch.allclose(keys["none"], keys["rope"], atol=0.1)


@torch.no_grad()
def test_a_shift_of_keys_is_taken_back_bit_for_bit() -> None:
    model = hf_posswap.swap(lively_model("gpt2", True), "rope")
    coordinates = Coordinates(first_layer(model)[0], first_layer(model)[2])
    bias = coordinates.key.bias.clone().view(4, -1)
    before = coordinates.shift_keys(torch.full_like(bias, 1 / 3).double())
    coordinates.put_back_keys(before, torch.tensor([True, False, True, False]))
    now = coordinates.key.bias.view(4, -1)
    assert torch.equal(now[::2], bias[::2])
    torch.testing.assert_close(now[1::2], bias[1::2] + 1 / 3)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_a_vector_that_all_keys_share_is_found(causal: bool, alike: bool) -> None:
    """Two query heads share the keys of each head; the stock keys are the swapped ones and a vector in common."""
    generator = torch.Generator().manual_seed(0)
    length, heads, dimension = 32, 2, 8

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    units = torch.linalg.qr(normal(1 if alike else heads, length, dimension, dimension)).Q
    of_heads = units.expand(heads, -1, -1, -1)
    query, key, shift = (
        normal(3, 2 * heads, length, dimension),
        normal(3, heads, length, dimension),
        normal(heads, 1, 8),
    )
    stock = torch.einsum("bhle,hled->bhld", key + shift, of_heads)
    swapped = torch.einsum("bhle,hled->bhld", key, of_heads)
    compared = query[:, :, compared_queries(length)]
    sample = Projections(compared, stock, compared, swapped, 0.3)
    found = key_shift([sample], {length: units}, causal, FitSettings())
    torch.testing.assert_close(found, shift[:, 0].double(), atol=0.02, rtol=0)


def test_where_queries_read_nothing_keys_stay() -> None:
    none = torch.zeros(1, 2, 8, 4)
    sample = Projections(none[:, :, compared_queries(8)], none, none[:, :, compared_queries(8)], none, 0.5)
    found = key_shift([sample], {8: torch.eye(4).expand(1, 8, 4, 4)}, True, FitSettings())
    assert torch.equal(found, torch.zeros(2, 4, dtype=torch.float64))


def test_what_has_no_coordinates_to_choose_is_refused() -> None:
    llama = hf_posswap.swap(small_model("llama", True), "rope:yarn")
    kept = hf_posswap.swap(small_model("gpt2", True), "rope:keep_native=true")
    adapted = add_lora(hf_posswap.swap(small_model("gpt2", True), "rope"), rank=2)
    for model in (llama, kept, adapted):
        with pytest.raises(UnsupportedError, match="'rope' has no parameters that calibration can fit"):
            calibrate(model, [random_tokens(1, 8)])
    assert calibration_refusal(hf_posswap.swap(small_model("gpt2", True), "rope")) is None


@torch.no_grad()
def test_on_real_weights_a_table_is_taken_over_by_turning_keys() -> None:
    tokenizer, model = load_tokenizer("demo:gpt2"), load_model("demo:gpt2").eval()
    train, test = (
        torch.cat(Windows([resolve_texts(name)[0].read()[:40000]], tokenizer, 256, packing=False).spread(16))
        for name in ("demo:book/train", "demo:book/test")
    )

    def loss() -> float:
        return float(model(test, labels=test).loss)

    stock = loss()
    hf_posswap.swap(model, "rope")
    swapped = loss()
    calibrate(model, [train], measure=False)
    assert loss() - stock < 0.7 * (swapped - stock)
    assert abs(float(hf_posswap.restore(model)(test, labels=test).loss) - stock) < 1e-4


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

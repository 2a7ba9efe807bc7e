"""Invariants 1 and 2: swapping in the scheme a model has changes nothing; any other one changes the output."""

from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.architectures import architecture_named
from hf_posswap.ramp import set_ramp
from hf_posswap.swapped.capabilities import CORE, default_facts
from hf_posswap.swapped.plan import core_of
from tests.matrix.cells import (
    Cell,
    default_cells,
    random_tokens,
    randomise,
    scheme_parameters,
    small_model,
    supported_cells,
)

MODES = [(name, causal) for name in CORE for causal in architecture_named(name).modes]


def native_of(architecture: str) -> str:
    return default_facts(architecture_named(architecture), architecture_named(architecture).modes[0]).native


def is_native(cell: Cell) -> bool:
    """Whether the cell computes what the stock model does."""
    native = native_of(cell.architecture)
    if cell.config.name != native:
        return False
    if native == "learned":
        # The other ways of making a table longer leave its first rows as they are.
        return cell.config.length is None or cell.config.extend != "interpolate"  # type: ignore[attr-defined]
    # dynamic changes nothing up to the train length, proportional nothing with all of the spectrum turning.
    return cell.label in ("rope", "rope:native", "rope:none", "rope:dynamic", "rope:proportional")


def gradients(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    model(tokens, labels=tokens).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("architecture", "causal"), MODES)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_identity_in_float32(architecture: str, causal: bool, backend: str) -> None:
    stock = small_model(architecture, causal, attn_implementation=backend)
    native = native_of(architecture)
    swapped = hf_posswap.swap(small_model(architecture, causal, attn_implementation=backend), native)
    tokens = random_tokens(2, 24)
    expected, actual = stock(tokens).logits, swapped(tokens).logits
    # BERT adds word, type and position in another order than we can: rounding differs. Elsewhere it is bit for bit.
    if architecture == "bert":
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(actual, expected)
    stock_gradients, swapped_gradients = gradients(stock, tokens), gradients(swapped, tokens)
    for name, gradient in stock_gradients.items():
        if name in swapped_gradients and "position_embeddings" not in name and "wpe" not in name:
            torch.testing.assert_close(swapped_gradients[name], gradient, atol=1e-5, rtol=1e-4)
    tables = [g for name, g in stock_gradients.items() if "position_embeddings" in name or "wpe" in name]
    for table in tables:
        torch.testing.assert_close(swapped.base_model.pos_scheme.table.grad, table, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "causal"), MODES)
def test_identity_in_bfloat16_is_no_further_from_the_truth_than_stock(architecture: str, causal: bool) -> None:
    tokens = random_tokens(4, 32)
    with torch.no_grad():
        truth = small_model(architecture, causal).double()(tokens).logits
        stock = small_model(architecture, causal).bfloat16()(tokens).logits.double()
        native = native_of(architecture)
        swapped = hf_posswap.swap(small_model(architecture, causal).bfloat16(), native)(tokens).logits.double()
    stock_error = (stock - truth).square().mean().sqrt()
    # Both errors are sums of thousands of roundings; 15% is the spread between seeds of stock alone.
    assert (swapped - truth).square().mean().sqrt() <= 1.15 * stock_error


@pytest.mark.parametrize("cell", supported_cells(), ids=str)
def test_effect(cell: Cell) -> None:
    tokens = random_tokens(2, 40 if hf_posswap.longest_position(cell.swapped()) is None else 24)
    stock_tokens = tokens[:, :32]
    with torch.no_grad():
        expected = cell.stock()(stock_tokens).logits
        start = cell.swapped(randomised=False)(stock_tokens).logits
        if is_native(cell):
            torch.testing.assert_close(start, expected, atol=1e-4, rtol=1e-4)
        else:
            assert (start - expected).abs().max() > 1e-3
        model = cell.swapped()
        moved = model(tokens).logits
        parameters = scheme_parameters(model)
        for parameter in parameters:
            parameter *= 1.5
        if parameters:
            assert (model(tokens).logits - moved).abs().max() > 1e-4


@pytest.mark.parametrize("cell", [cell for cell in default_cells() if cell.config.name != "none"], ids=str)
def test_a_scheme_does_more_than_take_the_old_mechanism_out(cell: Cell) -> None:
    tokens = random_tokens(2, 24)
    without = hf_posswap.swap(cell.stock(), "none", verify=False) if cell.causal else None
    if without is None:  # an encoder does not take `none`; in one mode of the proof a swapped model has no position
        without = cell.swapped()
        core_of(without).pos_mode = "bare"
    with torch.no_grad():
        assert not torch.allclose(cell.swapped()(tokens).logits, without(tokens).logits, atol=1e-3)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_keeping_the_native_mechanism_adds_to_it(cell: Cell) -> None:
    if cell.config.name == "none":
        pytest.skip("adding nothing is refused: tests/test_swapping.py")
    tokens = random_tokens(2, 24)
    kept = hf_posswap.swap(cell.stock(), {"name": cell.config.name, "keep_native": True})
    randomise(kept)
    with torch.no_grad():
        stock, replaced, added = (model(tokens).logits for model in (cell.stock(), cell.swapped(), kept))
        set_ramp(kept, 0)
        silenced = kept(tokens).logits
    assert (added - stock).abs().max() > 1e-3
    assert (added - replaced).abs().max() > 1e-3
    torch.testing.assert_close(silenced, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_every_parameter_of_the_scheme_gets_a_gradient(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 24)
    model(tokens, labels=tokens).loss.backward()
    for parameter in scheme_parameters(model):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("cell", supported_cells(), ids=str)
def test_restore_is_bit_exact(cell: Cell) -> None:
    tokens = random_tokens(2, 24)
    stock = cell.stock()
    model = hf_posswap.restore(cell.swapped())
    assert type(model) is type(stock)
    assert type(model.config) is type(stock.config)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in stock.named_modules()]
    assert model.config.to_dict() == stock.config.to_dict()
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, stock(tokens).logits)

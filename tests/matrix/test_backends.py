"""Invariant 4: the backends agree, and in half precision none is worse than stock attention is."""

from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.attention.flex import FLEX_BIASES
from hf_posswap.errors import BackendError
from hf_posswap.schemes import SchemeLayer
from hf_posswap.swapped import layer_call
from tests.matrix.cells import Cell, default_cells, random_tokens, supported_cells


@pytest.mark.parametrize("cell", supported_cells(), ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_eager_and_sdpa_agree_in_float32(cell: Cell, padded: bool) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 28)
    mask = torch.ones_like(tokens)
    if padded:
        mask[0, :9] = 0
    outputs = {}
    with torch.no_grad():
        for backend in ("eager", "sdpa"):
            model.set_attn_implementation(backend)
            outputs[backend] = model(tokens, attention_mask=mask).logits[mask.bool()]
    # The logits are of order 10 and go through three layers: 1e-5 relative.
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], atol=1e-4, rtol=1e-5)


def biases_of(model: Any, tokens: torch.Tensor) -> list[tuple[Any, Any]]:
    """The bias and the value side of each attention call of a forward."""
    calls: list[tuple[Any, Any]] = []
    attend = layer_call.attend
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(layer_call, "attend", lambda *call: (calls.append(call[1:3]), attend(*call))[1])
        model(tokens)
    return calls


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_half_precision_is_no_worse_than_stock_attention(cell: Cell) -> None:
    tokens = random_tokens(4, 32)
    with torch.no_grad():
        stock_error = (
            (cell.stock().bfloat16()(tokens).logits.double() - cell.stock().double()(tokens).logits)
            .square()
            .mean()
            .sqrt()
        )
        model = cell.swapped()
        for layer in (module for module in model.modules() if isinstance(module, SchemeLayer) and module.state_size):
            for weight in layer.parameters():  # of the size that training gives; larger ones amplify what rounding
                weight *= 0.2  # does to the hidden states themselves, which is not attention's error
        model = model.bfloat16()
        # The truth for the weights that the half-precision model really has.
        half = model(tokens).logits.double()
        model.set_attn_implementation("eager")
        eager = model(tokens).logits.double()
        model.set_attn_implementation("sdpa")
        exact = model.double()(tokens).logits
    truth_scale = exact.square().mean().sqrt() / cell.stock()(tokens).logits.square().mean().sqrt().double()
    # Stock's error here includes the rounding of the weights, ours does not: a strict bound but for its spread.
    bound = 1.25 * stock_error * max(1.0, float(truth_scale))
    if any(bias is not None and bias.reads_scores for bias, _ in biases_of(model, tokens)):
        # What is computed from scores magnifies the rounding of q and k, by as much as its weights say. Nothing does
        # better with the same q and k than eager attention, which computes in float32.
        bound = max(bound, 1.1 * (eager - exact).square().mean().sqrt())
    assert (half - exact).square().mean().sqrt() <= bound


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_flex_attention_agrees_or_says_it_cannot(cell: Cell) -> None:
    model = cell.swapped()
    if not type(model)._supports_flex_attn:
        pytest.skip(f"transformers has no flex_attention for {cell.architecture}")
    tokens = random_tokens(1, 24)
    carries = all(mix is None and isinstance(bias, FLEX_BIASES) for bias, mix in biases_of(model, tokens))
    # Not compiled: torch 2.13's kernels for the CPU forget the causal mask at some lengths and head dimensions, which
    # differ by the CPU, in the stock model as in ours. What is ours, masks and biases, is the same either way.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = model(tokens).logits
        model.set_attn_implementation("flex_attention")
        if not carries:
            with pytest.raises(BackendError, match="Backends that work: eager, sdpa"):
                model(tokens)
            return
        actual = model(tokens).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_attention_weights_come_from_eager_and_sum_to_one(cell: Cell) -> None:
    model = cell.swapped()
    model.set_attn_implementation("eager")
    tokens = random_tokens(2, 12)
    outputs = model(tokens, output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == 3
    assert len(outputs.hidden_states) == 4
    for weights in outputs.attentions:
        assert weights.shape == (2, 4, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 12), atol=1e-5, rtol=0)
        if cell.causal:
            assert weights.triu(1).abs().max() == 0


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_a_backend_that_cannot_carry_the_scheme_is_refused_before_anything_changes(cell: Cell) -> None:
    model = cell.stock()
    model.config._attn_implementation_internal = "flash_attention_2"
    layers = [module for module in cell.swapped().modules() if isinstance(module, SchemeLayer)]
    # A linear bias rides in extra channels, and so does one that sums steps.
    folds = cell.causal and cell.config.name in ("alibi", "cable", "fox")
    carries = folds or not any(layer.adds_bias for layer in layers)
    if carries:
        assert hf_posswap.is_swapped(hf_posswap.swap(model, cell.config))
        return
    with pytest.raises(BackendError, match="'flash_attention_2' cannot carry .*Backends that work: eager, sdpa"):
        hf_posswap.swap(model, cell.config)
    assert not hf_posswap.is_swapped(model)

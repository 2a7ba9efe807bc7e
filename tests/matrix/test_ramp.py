"""The ramp from the stock model to the swapped one: exact at both ends, without jumps, and gone without a trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

import hf_posswap
from hf_posswap.ramp import RampError, ramp_share, set_ramp
from tests.matrix.cells import (
    Cell,
    default_cells,
    random_tokens,
    randomise,
    scheme_parameters,
    small_model,
    supported_cells,
)
from tests.matrix.test_decoding import decode
from tests.matrix.test_effect import gradients, is_native

CELLS = [cell for cell in supported_cells() if cell.architecture != "gemma3_text"]
"""Cells whose old mechanism fades. Gemma 3 has two kinds of angles, which do not: the last test of this file."""
DEFAULT = [cell for cell in CELLS if cell.is_default]
KEEPING = [cell for cell in default_cells() if cell.config.name != "none"]
"""Cells whose scheme can be added to the native mechanism; `none` would add nothing."""

DECODING = [c for c in CELLS if c.causal and (c.is_default or c.label in ("rope:dynamic", "rope:longrope"))]
"""Causal cells with default options, and those that cache keys unrotated."""


def logits_at(model: Any, tokens: torch.Tensor, share: float | None, **arguments: Any) -> torch.Tensor:
    set_ramp(model, share)
    with torch.no_grad():
        return model(tokens, **arguments).logits


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_ramp_begins_at_the_stock_model_and_ends_at_the_swapped_one(cell: Cell) -> None:
    tokens = random_tokens(2, 24)
    model = cell.swapped()
    with torch.no_grad():
        stock, swapped = cell.stock()(tokens).logits, model(tokens).logits
    begin, half, end = (logits_at(model, tokens, share) for share in (0, 0.5, 1))
    attention_is_stock = cell.config.name in ("learned", "sinusoidal", "rope", "none")
    if attention_is_stock:
        assert torch.equal(begin, stock)
    else:
        torch.testing.assert_close(begin, stock, atol=1e-5, rtol=1e-5)
    assert torch.equal(end, swapped)
    if torch.allclose(stock, swapped, atol=1e-3):
        assert is_native(cell)
        torch.testing.assert_close(half, stock, atol=1e-4, rtol=1e-4)
    else:
        assert (half - stock).abs().max() > 0.1
        assert (half - swapped).abs().max() > 0.1
    assert ramp_share(model) == 1
    assert torch.equal(logits_at(model, tokens, None), swapped)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_ramp_has_no_jumps(cell: Cell) -> None:
    tokens = random_tokens(2, 24)
    model = cell.swapped()
    step = 1e-5
    for share in (0.0, 0.3, 0.5, 0.8, 1 - step):
        before, after = (logits_at(model, tokens, at) for at in (share, share + step))
        assert (after - before).abs().max() < 0.05, share


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_parameter_of_the_scheme_learns_on_the_way(cell: Cell) -> None:
    tokens = random_tokens(2, 24)
    model = cell.swapped()
    for share in (0.0, 0.5):
        set_ramp(model, share)
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        for parameter in scheme_parameters(model):
            # At 0 it is zero and not missing: distributed training wants a gradient from every parameter.
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert bool(parameter.grad.any()) == (share > 0)


class Counted(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operations(model: Any, tokens: torch.Tensor) -> list[str]:
    with torch.no_grad(), Counted() as counted:
        model(tokens)
    return counted.names


@pytest.mark.parametrize("cell", DEFAULT, ids=str)
def test_a_ramp_that_ended_left_nothing(cell: Cell) -> None:
    tokens = random_tokens(2, 24)
    model = cell.swapped()
    attributes = [set(vars(module)) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    swapped, before = model(tokens).logits, operations(model, tokens)
    set_ramp(model, 0.5)
    assert len(operations(model, tokens)) > len(before)
    assert model.state_dict().keys() == state.keys()
    set_ramp(model, None)
    assert ramp_share(model) is None
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert operations(model, tokens) == before
    assert torch.equal(model(tokens).logits, swapped)


@pytest.mark.parametrize("cell", DEFAULT, ids=str)
def test_a_checkpoint_knows_nothing_of_a_ramp(cell: Cell, tmp_path: Path) -> None:
    model = cell.swapped()
    model.save_pretrained(tmp_path / "before")
    set_ramp(model, 0.25)
    model.save_pretrained(tmp_path / "during")
    files = {folder: {p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in ("before", "during")}
    assert files["before"] == files["during"]


@pytest.mark.parametrize("cell", KEEPING, ids=str)
def test_a_mechanism_that_is_kept_does_not_fade(cell: Cell) -> None:
    tokens = random_tokens(2, 24)
    stock = cell.stock()
    model = hf_posswap.swap(cell.stock(), {"name": cell.config.name, "keep_native": True})
    randomise(model)
    with torch.no_grad():
        expected, kept = stock(tokens).logits, model(tokens).logits
    torch.testing.assert_close(logits_at(model, tokens, 0), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits_at(model, tokens, 1), kept)
    half = logits_at(model, tokens, 0.5)
    for end in (expected, kept):
        assert (half - end).abs().max() > 0.1
    with torch.no_grad():
        for parameter in scheme_parameters(model):
            parameter.zero_()
    if torch.allclose(logits_at(model, tokens, 1), expected, atol=1e-4):
        # Without its parameters the scheme says nothing: what is left is the mechanism that was kept, whole.
        torch.testing.assert_close(logits_at(model, tokens, 0.5), expected, atol=1e-4, rtol=1e-4)
    else:
        assert cell.config.name not in ("t5", "relative_bias", "shaw"), "a table of zeros says nothing"


@pytest.mark.parametrize("cell", DECODING, ids=str)
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_cached_equals_uncached_on_the_way(cell: Cell, kind: type) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 24)
    expected = logits_at(model, tokens, 0.4, use_cache=False)
    cache = DynamicCache(config=model.config) if kind is DynamicCache else StaticCache(model.config, max_cache_len=29)
    actual = decode(model, tokens, [10, 1, 1, 12], cache)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", DEFAULT, ids=str)
def test_padding_on_the_left_shifts_no_text_on_the_way(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 20)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    together = logits_at(model, tokens * mask, 0.4, attention_mask=mask)
    alone = logits_at(model, tokens[:1, 7:], 0.4)
    torch.testing.assert_close(together[:1, 7:], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", DEFAULT, ids=str)
def test_eager_and_sdpa_agree_on_the_way(cell: Cell) -> None:
    model = cell.swapped()
    outputs = []
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        outputs.append(logits_at(model, random_tokens(2, 28), 0.4))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("cell", DEFAULT, ids=str)
def test_a_layer_that_is_computed_again_has_the_share_it_had(cell: Cell) -> None:
    """The next step's share may be set before the backward pass, in which checkpointing computes layers again."""
    tokens = random_tokens(2, 16)
    results = []
    for checkpointing in (False, True):
        model = cell.swapped().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        set_ramp(model, 0.3)
        loss = model(tokens, labels=tokens).loss
        set_ramp(model, 0.6)
        loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", DEFAULT, ids=str)
def test_half_precision_begins_and_ends_where_it_should(cell: Cell) -> None:
    tokens = random_tokens(2, 24)
    model = cell.swapped().bfloat16()
    with torch.no_grad():
        swapped = model(tokens).logits
        stock = cell.stock().bfloat16()(tokens).logits.double()
        truth = cell.stock()(tokens).logits.double()
    assert torch.equal(logits_at(model, tokens, 1), swapped)
    assert logits_at(model, tokens, 0.5).dtype == torch.bfloat16
    error = (logits_at(model, tokens, 0).double() - truth).square().mean().sqrt()
    # The weights are rounded alike, the rest at other places: no worse than stock but for the spread of such errors.
    assert error <= 1.25 * (stock - truth).square().mean().sqrt()


@pytest.mark.parametrize("layers", [[1], [0, 2]])
@pytest.mark.parametrize("scheme", ["none", "alibi", "rope:linear:factor=2", "shaw"])
def test_only_the_layers_of_the_swap_change(scheme: str, layers: list[int]) -> None:
    tokens = random_tokens(2, 16)
    stock = small_model("llama", True)(tokens, output_hidden_states=True).hidden_states
    text = f"{scheme}:layers={'+'.join(map(str, layers))}"
    model = hf_posswap.swap(small_model("llama", True), text)
    randomise(model)
    swapped = model(tokens).logits
    set_ramp(model, 0.5)
    half = model(tokens, output_hidden_states=True).hidden_states
    first = layers[0]
    assert torch.equal(half[first], stock[first])
    assert not torch.allclose(half[first + 1], stock[first + 1], atol=1e-3)
    assert torch.equal(logits_at(model, tokens, 1), swapped)
    torch.testing.assert_close(
        logits_at(model, tokens, 0), small_model("llama", True)(tokens).logits, atol=1e-5, rtol=1e-5
    )


def test_gradients_at_the_ends_are_those_of_the_two_models() -> None:
    tokens = random_tokens(2, 16)
    for share, other in (
        (0.0, small_model("llama", True)),
        (1.0, hf_posswap.swap(small_model("llama", True), "alibi")),
    ):
        model = hf_posswap.swap(small_model("llama", True), "alibi")
        set_ramp(model, share)
        actual, expected = gradients(model, tokens), gradients(other, tokens)
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, atol=1e-6, rtol=1e-4)


def test_two_kinds_of_angles_cannot_be_faded_out_and_the_model_stays_as_it_is() -> None:
    model, tokens = hf_posswap.swap(small_model("gemma3_text", True), "alibi"), random_tokens(1, 24)
    before = model(tokens).logits
    with pytest.raises(RampError, match="cannot be faded out: .* the same in all layers"):
        set_ramp(model, 0.5)
    assert torch.equal(model(tokens).logits, before)

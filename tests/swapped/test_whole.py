"""A swap and its restoring are of a whole model: no part of a stock model keeps a swapped class or config."""

import copy
from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.errors import UnsupportedError
from hf_posswap.swapped.config_view import own_config
from hf_posswap.swapped.plan import core_of
from tests.families.configs import tiny_model
from tests.matrix.cells import Cell, default_cells, random_tokens, small_model

FAMILIES = [("gpt2", True), ("llama", True), ("bert", False), ("gemma3_text", True)]


def marks(model: Any) -> list[str]:
    """What is left of a swap in a model: classes, configs and attributes."""
    found = [type(module).__name__ for module in model.modules()]
    found += [type(own_config(module)).__name__ for module in model.modules()]
    found += [name for module in model.modules() for name in (*vars(module), *module._modules)]
    return sorted({name for name in found if name.startswith(("PosSwap", "pos_", "ConfigView"))})


@torch.no_grad()
@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_a_compiled_model_is_restored_through_its_wrapper(cell: Cell) -> None:
    tokens, stock = random_tokens(1, 12), cell.stock()
    model = cell.swapped()
    compiled = torch.compile(model, backend="eager")
    assert hf_posswap.restore(compiled) is compiled
    assert marks(model) == []
    assert vars(model.config).keys() == vars(stock.config).keys()
    assert type(model) is type(stock)
    # What is compiled now is the stock model, whatever the scheme was: one scheme is enough to see that it can be.
    run = compiled if cell.label == "alibi" else model
    assert torch.equal(run(tokens).logits, stock(tokens).logits)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["alibi", "none", "sinusoidal"])
def test_what_was_compiled_with_the_scheme_is_not_run_after_restoring(scheme: str) -> None:
    torch._dynamo.reset()
    tokens, model = random_tokens(1, 12), hf_posswap.swap(small_model("llama", True), scheme)
    compiled = torch.compile(model, backend="eager")
    swapped = compiled(tokens).logits
    hf_posswap.restore(compiled)
    assert torch.equal(compiled(tokens).logits, small_model("llama", True)(tokens).logits)
    assert not torch.equal(compiled(tokens).logits, swapped)


@torch.no_grad()
@pytest.mark.parametrize(("family", "causal"), FAMILIES)
def test_a_part_of_a_swapped_model_is_not_restored_alone(family: str, causal: bool) -> None:
    model = hf_posswap.swap(small_model(family, causal), "t5")
    for whole in (model, copy.deepcopy(model)):
        before, tokens = marks(whole), random_tokens(1, 12)
        expected = whole(tokens).logits
        for act in (hf_posswap.restore, lambda part: hf_posswap.swap(part, "alibi", replace=True)):
            with pytest.raises(UnsupportedError, match=f"swapped into a {type(small_model(family, causal)).__name__}"):
                act(whole.base_model)
        assert marks(whole) == before
        assert torch.equal(whole(tokens).logits, expected)
        hf_posswap.restore(whole)
        assert marks(whole) == []
        hf_posswap.swap(whole.base_model, "t5")
        hf_posswap.restore(whole.base_model)
        assert marks(whole) == []


@pytest.mark.parametrize(("family", "causal"), FAMILIES)
def test_a_model_around_a_swapped_base_is_told_which_part_to_restore(family: str, causal: bool) -> None:
    model = small_model(family, causal)
    hf_posswap.swap(model.base_model, "alibi")
    for act in (hf_posswap.restore, lambda whole: hf_posswap.swap(whole, "t5", replace=True)):
        with pytest.raises(UnsupportedError, match=f"swapped into a {type(model.base_model).stock_class.__name__}"):
            act(model)
    hf_posswap.restore(model.base_model)
    assert marks(model) == []


def test_a_base_that_is_read_further_inside_is_restored_as_what_was_swapped() -> None:
    model = hf_posswap.swap(tiny_model("opt", True), "alibi")
    assert core_of(model) is not model.base_model
    for part in (model.base_model, core_of(model)):
        with pytest.raises(UnsupportedError, match="swapped into a OPTForCausalLM"):
            hf_posswap.restore(part)
    assert marks(hf_posswap.restore(model)) == []


def test_a_wrapper_is_not_restored() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inner, self.config = model, model.config

    model = hf_posswap.swap(small_model("gpt2", True), "alibi")
    with pytest.raises(UnsupportedError, match="Wrapper is no transformers model but wraps one. Restore the"):
        hf_posswap.restore(Wrapper(model))
    assert hf_posswap.is_swapped(model)

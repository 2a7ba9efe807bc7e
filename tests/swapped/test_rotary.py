"""The rotary module of a swapped model: it computes angles only if a layer reads them."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import hf_posswap
from hf_posswap.ramp import set_ramp
from hf_posswap.swapped.angles import SwappedRotary, computed
from hf_posswap.swapped.plan import core_of
from tests.families.configs import tiny_model
from tests.matrix.cells import random_tokens

UNREAD = ("none", "alibi", "t5", "rope:scaling=linear:factor=2", "none:layers=0,alibi")


class Cosines(TorchDispatchMode):
    """Counts the tensors of cosines that are computed."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten.cos.default
        return function(*args, **(kwargs or {}))


def cosines(model: Any) -> int:
    with torch.no_grad(), Cosines() as seen:
        model(random_tokens(1, 8))
    return seen.count


def hidden(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(random_tokens(2, 8))[0]
    return found


@pytest.mark.parametrize("scheme", UNREAD)
@pytest.mark.parametrize("family", ["llama", "smollm3", "phi3", "gpt_neox"])
def test_angles_that_no_layer_reads_are_not_computed(family: str, scheme: str) -> None:
    model = hf_posswap.swap(tiny_model(family, True), scheme)
    own = len(core_of(model).pos_scheme.parts) == 1 and core_of(model).pos_scheme.enters_as_angles()
    assert cosines(model) == int(own)  # a RoPE with options computes its own angles, once
    made = hidden(model)
    with computed(model):
        assert cosines(model) == int(own) + 1
        assert torch.equal(hidden(model), made)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert cosines(other) == int(own)
        assert torch.equal(hidden(other), made)


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        ("llama", "rope"),
        ("llama", "alibi:keep_native=true"),
        ("llama", "alibi:layers=0"),
        ("gemma3_text", "rope:base=5000"),
    ],
)
def test_angles_that_a_layer_reads_are_computed(family: str, scheme: str) -> None:
    stock = tiny_model(family, True)
    model = hf_posswap.swap(copy.deepcopy(stock), scheme)
    assert not any(isinstance(module, SwappedRotary) for module in model.modules())
    assert cosines(model) >= cosines(stock)


def test_a_restored_model_computes_its_angles_and_a_ramp_fades_them() -> None:
    stock = tiny_model("llama", True)
    model = hf_posswap.swap(copy.deepcopy(stock), "alibi")
    set_ramp(model, 0.0)
    torch.testing.assert_close(hidden(model), hidden(stock), atol=1e-4, rtol=1e-4)
    set_ramp(model, None)
    hf_posswap.restore(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in stock.modules()]
    assert torch.equal(hidden(model), hidden(stock))


def test_positions_of_another_form_get_the_stock_angles() -> None:
    """M-RoPE gives positions (3, B, L), and the shape of its angles differs by family."""

    class Stock(nn.Module):
        def forward(self, x: Tensor, position_ids: Tensor) -> str:
            return "stock"

    class Both(SwappedRotary, Stock):
        pos_width = 8

    hidden = torch.zeros(1, 5, 16)
    assert Both()(hidden, torch.zeros(3, 1, 5, dtype=torch.long)) == "stock"
    assert Both()(hidden, torch.zeros(1, 5, dtype=torch.long)).cos.shape == (1, 5, 8)

"""No weight is left as raw memory, which these tests fill with NaN: what nobody gave a value starts as after a swap."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_posswap
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.schemes.learned import extend_table
from hf_posswap.swapped.plan import core_of, scheme_keys
from tests.matrix.cells import Cell, default_cells, randomise, scheme_parameters, supported_cells

WITH_WEIGHTS = [cell for cell in supported_cells() if cell.is_default or scheme_parameters(cell.swapped())]


@pytest.fixture(autouse=True)
def raw_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert bool(torch.empty(3).isnan().all())
    yield
    torch.use_deterministic_algorithms(before)


def assert_started(model: Any, reference: Any) -> None:
    """Assert that what a swap put in is as in a model that was just swapped, tables aside, which start at random."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, value in tensors if value.is_floating_point() and not bool(value.isfinite().all())]
    tables = [name for name, module in model.named_modules() if isinstance(module, RetiredTable)]
    scheme = core_of(model).pos_scheme
    started, expected = model.state_dict(), reference.state_dict()
    for name in scheme_keys(model):
        if name.rpartition(".")[0] in tables or scheme.name == "learned":
            continue
        assert torch.equal(started[name], expected[name]), name
    table = core_of(model).architecture.position_table(core_of(model))
    if isinstance(table, RetiredTable):
        assert float(table.table.std()) > 0.1, "as the config's initializer_range of 0.25 says"
        mean = table.table[table.first_row + 1 :].mean(0, keepdim=True)
        assert torch.equal(table.weight, torch.zeros_like(mean) if scheme.brings_whole_table() else mean)
        if scheme.name == "learned":
            options = scheme.config
            rows = extend_table(table.usable_rows(), options.length, options.extend, options.alpha)
            assert torch.equal(scheme.table, rows)


@pytest.mark.parametrize("cell", WITH_WEIGHTS, ids=str)
def test_a_model_made_without_memory_starts_as_one_that_was_swapped(cell: Cell) -> None:
    swapped = cell.swapped(randomised=False)
    with torch.device("meta"):
        model = type(swapped)(swapped.config)
    model.to_empty(device="cpu").init_weights()
    assert_started(model, swapped)
    randomise(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "it has its weights"


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_weights_of_another_size_that_are_ignored_start_as_after_a_swap(cell: Cell, tmp_path: Path) -> None:
    swapped = cell.swapped(randomised=False)
    keys = set(scheme_keys(swapped))
    swapped.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    saved = {name: torch.cat([value, value]) if name in keys else value for name, value in load_file(file).items()}
    save_file(saved, file, metadata={"format": "pt"})
    model = hf_posswap.AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert_started(model, swapped.base_model)
    stock = {name: value for name, value in swapped.base_model.state_dict().items() if name in model.state_dict()}
    own = set(scheme_keys(model))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in stock.items() if name not in own)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_weights_that_were_trained_are_not_started_again(cell: Cell) -> None:
    model = cell.swapped()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

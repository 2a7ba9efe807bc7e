"""On the meta device, where there are shapes and no values, a swapped model runs wherever its stock model does."""

from functools import cache
from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.errors import SchemeConfigError
from hf_posswap.swapped.cache_view import cache_keyword
from tests.matrix.cells import VOCABULARY, Cell, small_model, supported_cells


def calls(model: Any, causal: bool) -> dict[str, Any]:
    """What each kind of call returns in shape, or the name of the error that it ends in."""
    tokens = torch.zeros(2, 12, dtype=torch.long, device="meta")
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "positions": {"position_ids": torch.arange(12, device="meta")[None]},
        "mask": {"attention_mask": torch.ones(2, 12, dtype=torch.long, device="meta")},
        "embeddings": {"inputs_embeds": model.get_input_embeddings()(tokens)},
    }
    found: dict[str, Any] = {}
    for name, arguments in ways.items():
        tokens_or_not = {} if "inputs_embeds" in arguments else {"input_ids": tokens}
        try:
            out = model(**tokens_or_not, **arguments, **({"use_cache": True} if causal else {}))
            found[name] = (out.logits.device.type, tuple(out.logits.shape))
            cache = cache_keyword(out)
            if cache is not None and name == "plain":
                more = model(tokens[:, :1], use_cache=True, **{cache: out[cache]})
                found["cached"] = (more.logits.device.type, tuple(more.logits.shape))
        except Exception as error:  # what stock cannot run on this device, nobody asks of us
            found[name] = type(error).__name__
    return found


@cache
def calls_of_stock(architecture: str, causal: bool) -> dict[str, Any]:
    """The same of the stock model, once for all schemes."""
    with torch.device("meta"):
        stock = small_model(architecture, causal)
    return calls(stock, causal)


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if cell.is_default], ids=str)
def test_a_swapped_model_runs_on_the_meta_device_where_stock_does(cell: Cell) -> None:
    swapped = cell.swapped()
    with torch.device("meta"):
        made = type(swapped)(swapped.config).eval()
    expected = calls_of_stock(cell.architecture, cell.causal)
    found = calls(made, cell.causal)
    runs = {name: value for name, value in expected.items() if isinstance(value, tuple)}
    assert {name: found[name] for name in runs} == runs
    text = str(hf_posswap.describe(made))
    assert "not run, the model has no weights yet" in text
    assert "not verified" in text
    assert {value.device.type for value in (*made.parameters(), *made.buffers())} == {"meta"}
    assert calls(hf_posswap.restore(made), cell.causal) == expected


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert"])
def test_texts_run_there_in_one_way_at_least(architecture: str) -> None:
    cell = next(cell for cell in supported_cells() if cell.architecture == architecture and cell.label == "alibi")
    with torch.device("meta"):
        model = hf_posswap.swap(cell.stock(), "alibi")
    assert ("meta", (2, 12, VOCABULARY)) in calls(model, cell.causal).values()


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if cell.is_default], ids=str)
def test_a_model_is_swapped_on_the_meta_device(cell: Cell) -> None:
    with torch.device("meta"):
        model = cell.stock()
    if cell.config.name == "sinusoidal":  # its amplitude is taken from weights
        with pytest.raises(SchemeConfigError, match="'amplitude' is left open"):
            hf_posswap.swap(model, cell.config)
        return
    hf_posswap.swap(model, cell.config)
    assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"meta"}

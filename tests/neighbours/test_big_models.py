"""accelerate's ways to hold a model that does not fit: device maps, offloading to the CPU's memory and to disk."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.common.positions import Positions
from hf_posswap.swapped.context import ForwardContext
from tests.matrix.cells import randomise

SCHEMES = ["alibi", "sinusoidal", "rope", "t5:per_layer=true"]


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens, use_cache=False).logits


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def swapped(gpt2_books_path: Path, scheme: str) -> Any:
    """The model on one device, as swapped; where a scheme learns, away from where it starts."""
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(gpt2_books_path, dtype=torch.float32, pos_scheme=scheme)
    randomise(model)
    return model.eval()


def test_device_map_auto(swapped: Any, prompt: torch.Tensor, tmp_path: Path) -> None:
    swapped.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(logits(loaded, prompt), logits(swapped, prompt))


def test_a_swapped_checkpoint_offloaded_to_disk(swapped: Any, prompt: torch.Tensor, tmp_path: Path) -> None:
    swapped.save_pretrained(tmp_path / "swapped", max_shard_size="4MB")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "swapped", device_map="auto", max_memory={"cpu": "9MB"}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in model.hf_device_map.values()
    assert "cpu" in model.hf_device_map.values()
    torch.testing.assert_close(logits(model, prompt), logits(swapped, prompt), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory", ["9MB", "1KB"])
def test_a_stock_model_offloaded_to_disk_is_swapped(
    gpt2_books_path: Path, scheme: str, memory: str, prompt: torch.Tensor, tmp_path: Path
) -> None:
    load = hf_posswap.AutoModelForCausalLM.from_pretrained
    expected = logits(load(gpt2_books_path, dtype=torch.float32, pos_scheme=scheme).eval(), prompt)
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(
        gpt2_books_path, dtype=torch.float32, pos_scheme=scheme,
        device_map="auto", max_memory={"cpu": memory}, offload_folder=tmp_path,
    )  # fmt: skip
    assert "disk" in model.hf_device_map.values()
    if not scheme.startswith("t5"):  # its values are all zero until trained: the mean row alone moves the outputs
        assert hf_posswap.describe(model).probe.typical > 0.01
    torch.testing.assert_close(logits(model, prompt), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_by_hooks(swapped: Any, place: str, prompt: torch.Tensor, tmp_path: Path) -> None:
    expected = logits(swapped, prompt)
    if place == "cpu":
        accelerate.cpu_offload(swapped, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(swapped, str(tmp_path), execution_device=torch.device("cpu"))
    assert next(swapped.parameters()).is_meta
    for _ in range(2):
        torch.testing.assert_close(logits(swapped, prompt), expected, atol=1e-5, rtol=1e-5)
    assert next(swapped.base_model.h[0].parameters()).is_meta


def test_what_layers_share_follows_them_from_device_to_device(swapped: Any) -> None:
    steps = torch.arange(4).unsqueeze(0)
    positions = Positions(steps, steps, torch.tensor(0), causal=True)
    context = ForwardContext(positions, swapped.base_model.pos_scheme.prepare(positions))
    moved = accelerate.utils.send_to_device({"pos_context": context}, torch.device("meta"))["pos_context"]
    assert isinstance(moved, ForwardContext)
    at = moved.positions
    assert {tensor.device.type for tensor in (at.query, at.key, at.offset, at.distances)} == {"meta"}
    assert at.causal
    assert at.by_index

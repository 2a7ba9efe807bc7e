"""Values per token in the cache: exact in every dtype, cut and extended with the keys; caches without room are refused.

The matrix runs `fox` and `cable` through static caches, windows, beams, gradient checkpointing and compilation.
"""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import QuantizedLayer

import hf_posswap
from hf_posswap.common.summed_bias import SummedBias
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes.token_steps import StepLayer
from hf_posswap.swapped.token_state import with_state, without_state
from tests.matrix.cells import given, random_tokens, randomise, small_model

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
LENGTH = 16


def swapped(scheme: str = "fox", architecture: str = "llama", causal: bool = True) -> Any:
    model = hf_posswap.swap(small_model(architecture, causal, layers=2), scheme)
    randomise(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("size", "key_heads"), [(9, 3), (5, 2), (1, 4), (4, 1)])
def test_channels_hold_values_exactly(size: int, key_heads: int, dtype: torch.dtype) -> None:
    keys, state = torch.randn(2, key_heads, 7, 6).to(dtype), torch.randn(2, size, 7).exp()
    stored = with_state(keys, state)
    assert stored.dtype == dtype
    back, found = without_state(stored, 6, size)
    assert torch.equal(back, keys)
    if dtype == torch.float16:  # its smallest number is 2^−24
        torch.testing.assert_close(found, state, atol=2**-24, rtol=2**-24)
    else:
        assert torch.equal(found, state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_from_the_cache_of_a_model_in_half_precision_are_those_of_the_whole_text(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = swapped().to(dtype), random_tokens(2, LENGTH)
    found: list[torch.Tensor] = []
    bias = StepLayer.bias

    def record(self: StepLayer, inputs: Any) -> Any:
        made = bias(self, inputs)
        assert isinstance(made, SummedBias)
        found.append(made.steps)
        return made

    monkeypatch.setattr(StepLayer, "bias", record)
    with torch.no_grad():
        model(tokens, use_cache=False)
        cached = given(model, DynamicCache())
        found = found[:1]  # the first layer's, whose hidden states do not depend on attention
        for chunk in tokens.split([9, 1, 6], dim=1):
            model(chunk, use_cache=True, **cached)
    whole, last = found[0], found[-2]
    assert whole.dtype == torch.float32
    torch.testing.assert_close(last, whole, atol=2**-22 if dtype == torch.float16 else 0, rtol=2**-22)


def test_a_cache_that_is_cut_goes_on_with_other_tokens() -> None:
    model, tokens, others = swapped(), random_tokens(2, LENGTH), random_tokens(2, 5, seed=7)
    cache = DynamicCache()
    cached = given(model, cache)
    with torch.no_grad():
        model(tokens, use_cache=True, **cached)
        cache.crop(9 - LENGTH)
        actual = model(others, use_cache=True, **cached).logits
        expected = model(torch.cat((tokens[:, :9], others), dim=1), use_cache=False).logits[:, 9:]
    torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("window", [4, 40])
def test_a_window_of_the_scheme_cuts_the_sums_nowhere(window: int, cache: str) -> None:
    model, tokens = swapped(f"fox:window={window}"), random_tokens(2, LENGTH)
    made = DynamicCache() if cache == "dynamic" else StaticCache(config=model.config, max_cache_len=LENGTH + 4)
    cached, parts = given(model, made), []
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        for chunk in tokens.split([6, 1, 1, 8], dim=1):
            parts.append(model(chunk, use_cache=True, **cached).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, **CLOSE)


class RoundedLayer(QuantizedLayer):
    """A quantised layer without a library: numbers are rounded to quarters."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return (tensor * 4).round()

    def _dequantize(self, q_tensor: torch.Tensor) -> torch.Tensor:
        return q_tensor / 4


def test_a_cache_that_rounds_keys_is_refused() -> None:
    model = swapped()
    cache = DynamicCache()
    cache.layers = [RoundedLayer() for _ in range(2)]
    with pytest.raises(UnsupportedError, match=r"RoundedLayer would round them.*cache_implementation='dynamic'"):
        model(random_tokens(1, LENGTH), use_cache=True, **given(model, cache))
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("kind", ["filled by the stock model", "filled in another dtype", "allocated before"])
def test_a_cache_whose_keys_have_no_values_is_refused(kind: str) -> None:
    model, tokens = swapped(), random_tokens(1, LENGTH)
    cache: Any = DynamicCache()
    with torch.no_grad():
        if kind == "filled by the stock model":
            stock = small_model("llama", True, layers=2)
            stock(tokens, use_cache=True, **given(stock, cache))
        elif kind == "filled in another dtype":
            half = swapped().bfloat16()
            half(tokens, use_cache=True, **given(half, cache))
        else:
            cache = StaticCache(config=model.config, max_cache_len=2 * LENGTH)
            cache.early_initialization(batch_size=1, num_heads=2, head_dim=8, dtype=torch.float32, device="cpu")
        with pytest.raises(UnsupportedError, match=r"stores 10 numbers for each token and head, .*empty cache"):
            model(tokens, use_cache=True, **given(model, cache))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", ["fox", "cable"])
def test_tokens_that_a_query_does_not_see_do_not_count(scheme: str, backend: str) -> None:
    """Two continuations of one text, hidden from each other by a 4D mask, come out as each alone."""
    model, tokens = swapped(scheme), random_tokens(1, 15)
    model.set_attn_implementation(backend)
    mask = torch.ones(15, 15, dtype=torch.bool).tril()
    mask[11:, 7:11] = False
    positions = torch.cat((torch.arange(11), torch.arange(7, 11)))[None]
    additive = torch.zeros(15, 15).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        actual = model(tokens, attention_mask=additive, position_ids=positions, use_cache=False).logits
        first = model(tokens[:, :11], use_cache=False).logits
        second = model(torch.cat((tokens[:, :7], tokens[:, 11:]), dim=1), use_cache=False).logits[:, 7:]
    torch.testing.assert_close(actual, torch.cat((first, second), dim=1), **CLOSE)

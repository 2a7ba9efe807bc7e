"""Biases whose values lie in another order in memory mean the same, on every path."""

import pytest
import torch

from hf_posswap.attention import attend
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.biases import RelativeBias


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_values_whose_heads_alternate_in_memory(backend: str, causal: bool, masked: bool, learns: bool) -> None:
    length, heads = 20, 4
    q, k, v = (torch.randn(2, heads, length, 8) for _ in range(3))
    mask = None
    if masked:
        mask = torch.ones(2, 1, length, length, dtype=torch.bool)
        mask[0, :, :, :3] = False
        mask = mask.tril() if causal else mask
    inputs = AttentionInputs(q, k, v, mask, causal, 0.3)
    values = torch.randn(heads, 2 * length - 1)
    found = []
    for ordered in (values.clone(), values.t().contiguous().t()):
        ordered.requires_grad_(learns)
        context = attend(inputs, RelativeBias(ordered, length, length), None, backend)[0][:, :, 3:]
        gradient = torch.autograd.grad(context.square().sum(), ordered)[0] if learns else None
        found.append((context.detach(), gradient))
    assert values.t().contiguous().t().stride() == (1, heads)
    torch.testing.assert_close(*found)

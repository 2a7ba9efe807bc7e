"""FlexAttention with a score_mod, one small call of each kind.

Numbers are compared uncompiled: torch 2.13's compiled kernels for the CPU forget masks at some lengths and head
dimensions, which differ by the CPU, without any bias of ours. That calls are compiled is a test of its own.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from hf_posswap.attention import attend, flex
from tests.attention.kinds import KINDS, make_biased_call
from tests.device_reads import Reads
from tests.reference import FLOAT32

CARRIED = [kind for kind in KINDS if kind != "relative content"]


@pytest.fixture
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("kind", CARRIED)
def test_every_kind_equals_the_loop(kind):
    biased = make_biased_call(kind, "boolean mask", head_dim=16)
    with torch.no_grad():
        biased.assert_close(attend(biased.inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("call", ["causal", "chunk"])
def test_every_shape_of_call_equals_the_loop(call):
    biased = make_biased_call("linear", call, (9, 3), head_dim=16)
    with torch.no_grad():
        biased.assert_close(attend(biased.inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)


@pytest.mark.usefixtures("uncompiled")
def test_a_block_mask_is_honoured():
    from torch.nn.attention.flex_attention import create_block_mask

    biased = make_biased_call("relative", "boolean mask", head_dim=16)
    visible = biased.visible
    block_mask = create_block_mask(lambda b, h, i, j: visible[b, i, j], 2, None, 11, 11, device="cpu")
    inputs = type(biased.inputs)(**{**vars(biased.inputs), "mask": block_mask})
    with torch.no_grad():
        biased.assert_close(attend(inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)


@pytest.mark.usefixtures("uncompiled")
def test_bfloat16_stays_close_to_the_loop():
    biased = make_biased_call("linear", "causal", (9, 3), head_dim=16, dtype=torch.bfloat16)
    with torch.no_grad():
        context = attend(biased.inputs, biased.bias, None, "flex_attention")[0]
    biased.assert_close(context, atol=0.02, rtol=0.02)  # values of order 1, rounded to 8 bits a few times


def test_layers_of_one_shape_share_one_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    graphs = CompileCounter()
    monkeypatch.setattr(flex, "compiled_flex_attention", lambda: torch.compile(flex_attention, backend=graphs))
    biased = make_biased_call("relative", "causal", (9, 3), head_dim=16)
    with torch.no_grad():
        for _ in range(3):
            biased.assert_close(attend(biased.inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)
    assert graphs.frame_count == 1


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("call", ["causal", "boolean mask", "additive mask", "decode", "chunk"])
def test_grouped_queries_share_the_keys_and_values_of_their_group(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention reads them in place: no key or value is repeated for the query heads of a group."""
    heads: list[int] = []

    def recorded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: Any) -> torch.Tensor:
        heads.extend((q.shape[1], k.shape[1], v.shape[1]))
        return flex_attention(q, k, v, **given)

    monkeypatch.setattr(flex, "compiled_flex_attention", lambda: recorded)
    biased = make_biased_call("relative", call, (9, 3), head_dim=16)
    with torch.no_grad():
        biased.assert_close(attend(biased.inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)
    assert heads == [9, 3, 3]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("call", ["boolean mask", "additive mask", "infinite mask", "encoder mask"])
def test_no_value_of_a_mask_is_read(call: str) -> None:
    biased = make_biased_call("relative", call, head_dim=16)
    with torch.no_grad(), Reads() as counted:
        attend(biased.inputs, biased.bias, None, "flex_attention")
    assert counted.count == 0

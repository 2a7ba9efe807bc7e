"""FlexAttention with a score_mod, compiled: slow to make, so one small call of each kind."""

import pytest
import torch

from hf_posswap.attention import attend
from tests.attention.kinds import KINDS, make_biased_call
from tests.reference import FLOAT32

CARRIED = [kind for kind in KINDS if kind != "relative content"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Other tests' shapes and dtypes must not steer how this call is compiled."""
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CARRIED)
def test_every_kind_equals_the_loop(kind):
    biased = make_biased_call(kind, "boolean mask", head_dim=16)
    with torch.no_grad():
        biased.assert_close(attend(biased.inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["causal", "chunk"])
def test_every_shape_of_call_equals_the_loop(call):
    biased = make_biased_call("linear", call, (9, 3), head_dim=16)
    with torch.no_grad():
        biased.assert_close(attend(biased.inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)


@pytest.mark.slow
def test_a_block_mask_is_honoured():
    from torch.nn.attention.flex_attention import create_block_mask

    biased = make_biased_call("relative", "boolean mask", head_dim=16)
    visible = biased.visible
    block_mask = create_block_mask(lambda b, h, i, j: visible[b, i, j], 2, None, 11, 11, device="cpu")
    inputs = type(biased.inputs)(**{**vars(biased.inputs), "mask": block_mask})
    with torch.no_grad():
        biased.assert_close(attend(inputs, biased.bias, None, "flex_attention")[0], **FLOAT32)


@pytest.mark.slow
def test_bfloat16_stays_close_to_the_loop():
    biased = make_biased_call("linear", "causal", (9, 3), head_dim=16, dtype=torch.bfloat16)
    with torch.no_grad():
        context = attend(biased.inputs, biased.bias, None, "flex_attention")[0]
    biased.assert_close(context, atol=0.02, rtol=0.02)  # values of order 1, rounded to 8 bits a few times

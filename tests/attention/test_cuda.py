"""The CUDA paths against the float64 loop: flash with extra channels, FlexAttention with a score_mod, query blocks."""

import pytest
import torch

import hf_posswap
from hf_posswap.attention import attend
from hf_posswap.attention.eager import eager_attention
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.biases import Bias, LinearBias, RelativeBias
from hf_posswap.schemes import schemes
from hf_posswap.schemes.alibi import alibi_slopes
from tests.matrix.cells import random_tokens, small_model

pytestmark = pytest.mark.gpu

HEADS, KEY_HEADS, DIM = 9, 3, 64


def call(length: int, dtype: torch.dtype, learns: bool = False) -> AttentionInputs:
    generator = torch.Generator(device="cuda").manual_seed(0)
    shapes = [(2, heads, length, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    q, k, v = (torch.randn(s, device="cuda", generator=generator).to(dtype).requires_grad_(learns) for s in shapes)
    return AttentionInputs(q, k, v, None, causal=True, scaling=DIM**-0.5)


def biases(length: int, learns: bool = False) -> dict[str, Bias]:
    steps = torch.arange(1 - length, length, device="cuda")
    generator = torch.Generator(device="cuda").manual_seed(1)
    values = torch.randn(HEADS, 2 * length - 1, device="cuda", generator=generator)
    return {
        "linear": LinearBias(alibi_slopes(HEADS).cuda().requires_grad_(learns), steps, length, length),
        "relative": RelativeBias(values.requires_grad_(learns), length, length),
    }


def exact(inputs: AttentionInputs, bias: Bias) -> torch.Tensor:
    """The same call written out in float64."""
    doubled = AttentionInputs(
        inputs.q.double(), inputs.k.double(), inputs.v.double(), None, inputs.causal, inputs.scaling
    )
    return eager_attention(doubled, bias, None)[0]


@pytest.mark.parametrize("kind", ["linear", "relative"])
@pytest.mark.parametrize("length", [128, 1000, 2048])
def test_sdpa_in_half_precision_is_no_worse_than_stock(kind: str, length: int) -> None:
    inputs = call(length, torch.bfloat16)
    bias = biases(length)[kind]
    error = (attend(inputs, bias, None, "sdpa")[0].double() - exact(inputs, bias)).square().mean().sqrt()
    flat = RelativeBias(torch.zeros(HEADS, 2 * length - 1, device="cuda"), length, length)
    stock = attend(inputs, None, None, "sdpa")[0].double() - exact(inputs, flat)
    # A bias makes attention sharper, whose rounding weighs more: the same bound as on CPU.
    assert error <= 1.5 * stock.square().mean().sqrt()


@pytest.mark.parametrize("kind", ["linear", "relative"])
def test_gradients_of_the_bias_follow_the_written_out_formula(kind: str) -> None:
    length = 384
    gradients = []
    for backend in ("eager", "sdpa"):
        inputs, bias = call(length, torch.float32, learns=True), biases(length, learns=True)[kind]
        attend(inputs, bias, None, backend)[0].square().sum().backward()
        learned = bias.slopes if isinstance(bias, LinearBias) else bias.values  # type: ignore[attr-defined]
        gradients.append((learned.grad, inputs.q.grad))
    for eager, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, eager, atol=2e-3 * float(eager.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["linear", "relative"])
def test_no_dense_bias_on_cuda(kind: str) -> None:
    length = 8192
    inputs, bias = call(length, torch.bfloat16), biases(length)[kind]
    attend(inputs, bias, None, "sdpa")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(inputs, bias, None, "sdpa")
    assert (
        torch.cuda.max_memory_allocated() - before < HEADS * length * length
    )  # bytes; one byte for each head and pair


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", sorted(scheme.name for scheme in schemes))
def test_the_cpu_does_not_wait_for_the_device_in_a_forward(scheme: str, backend: str) -> None:
    model = hf_posswap.swap(small_model("llama", True), scheme).cuda()
    model.set_attn_implementation(backend)
    tokens = random_tokens(2, 24).cuda()
    with torch.no_grad():
        model(tokens, use_cache=False)  # what is compiled is compiled here
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(tokens, use_cache=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")

"""Every scheme in every core family on fake CUDA tensors: `make rehearse-cuda`, which needs torch built for CUDA.

With torch built for the CPU alone, what is rehearsed is the rehearsal.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_posswap import longest_position
from hf_posswap.attention import attend
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.biases import RelativeBias
from hf_posswap.errors import BackendError
from tests.cuda.rehearsal import WORK, Seen, answers_to, rehearse
from tests.matrix.cells import TRAIN_LENGTH, Cell, default_cells, small_model, supported_cells

BACKENDS = ("eager", "sdpa", "flex_attention")
DTYPES = (torch.bfloat16, torch.float32)
REHEARSED_LAYERS = 2
"""Layers of the models: more than one, to see what is read in each of them."""
LONGER = TRAIN_LENGTH + 8
"""Past the train length, where some schemes compute otherwise."""

CELLS = supported_cells() if torch.version.cuda else default_cells()[:1]
"""Without torch for CUDA one cell says that all are skipped."""

cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="torch is built for the CPU: make rehearse-cuda")


@cache
def stock_seen(architecture: str, causal: bool, work: str, dtype: torch.dtype, backend: str, device: str) -> Seen:
    stock = small_model(architecture, causal, layers=REHEARSED_LAYERS)
    return rehearse(stock, work, TRAIN_LENGTH, [], dtype, backend, device)


def faults(cell: Cell, work: str, dtype: torch.dtype, backend: str, device: str = "cuda") -> list[str]:
    """What is wrong with a forward on fake tensors, beside the stock model's."""
    model = cell.swapped(layers=REHEARSED_LAYERS)
    length = min(longest_position(model) or LONGER, LONGER)
    answers = answers_to(model, work, length)
    seen = rehearse(model, work, length, answers, dtype, backend, device)
    stock = stock_seen(cell.architecture, cell.causal, work, dtype, backend, device)
    found = []
    if len(seen.reads) > len(stock.reads) + 1:
        found.append(f"reads the device {len(seen.reads)} times, stock {len(stock.reads)}: {seen.reads}")
    if len(seen.copies) > len(stock.copies):
        found.append(f"copies to the device {len(seen.copies)} times, stock {len(stock.copies)}: {seen.copies}")
    if (seen.output.device.type, seen.output.dtype) != (device, stock.output.dtype):
        found.append(f"its logits are {seen.output.dtype} on {seen.output.device}, stock's {stock.output.dtype}")
    return found


def works_of(cell: Cell, backend: str) -> list[str]:
    """An encoder does not decode, and transformers' FlexAttention that is to learn needs the driver."""
    without = {"decode"} if not cell.causal else set()
    return [work for work in WORK if work not in without | ({"training"} if backend == "flex_attention" else set())]


@cuda_build
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_forwards_run_on_a_gpu_as_far_as_torch_checks_without_one(cell: Cell, backend: str) -> None:
    if backend == "flex_attention" and not type(cell.swapped(layers=REHEARSED_LAYERS))._supports_flex_attn:
        pytest.skip(f"transformers has no flex_attention for {cell.architecture}")
    if backend == "flex_attention":
        try:
            faults(cell, "prefill", torch.float32, backend)
        except BackendError:  # tests/matrix/test_backends.py says which schemes it carries
            return
    found = {}
    for dtype in DTYPES:
        for work in works_of(cell, backend):
            found[f"{dtype} {work}"] = faults(cell, work, dtype, backend)
    assert not any(found.values()), {what: fault for what, fault in found.items() if fault}


@cuda_build
@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_with_a_bias_is_traced_as_one_graph(masked: bool) -> None:
    """As far as torch goes without a driver: Inductor asks it for the GPU, and a backward pass for a context."""
    torch._dynamo.reset()
    length = 256
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        q, k, v = (torch.empty(2, heads, length, 64, dtype=torch.bfloat16) for heads in (9, 3, 3))
        bias = RelativeBias(torch.empty(9, 2 * length - 1), length, length)
        mask = torch.ones(2, 1, length, length, dtype=torch.bool) if masked else None
        inputs = AttentionInputs(q, k, v, mask, True, 0.125)
        traced = torch.compile(lambda: attend(inputs, bias, None, "sdpa")[0], backend="aot_eager", fullgraph=True)
        context = traced()
    assert (context.device.type, context.dtype, context.shape) == ("cuda", q.dtype, q.shape)


@pytest.mark.parametrize("cell", [cell for cell in default_cells() if cell.architecture == "llama"], ids=str)
def test_the_rehearsal_runs_on_fake_tensors_of_a_cpu(cell: Cell) -> None:
    assert faults(cell, "decode", torch.bfloat16, "eager", "cpu") == []


def test_the_rehearsal_notices_a_read_in_a_layer() -> None:
    model: Any = small_model("llama", True, layers=REHEARSED_LAYERS)
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, given, output: output * float(output[0, 0, 0]))
    stock = stock_seen("llama", True, "prefill", torch.float32, "eager", "cpu")
    seen = rehearse(model, "prefill", TRAIN_LENGTH, [], torch.float32, "eager", "cpu")
    assert len(seen.reads) == len(stock.reads) + REHEARSED_LAYERS

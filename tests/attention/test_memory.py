"""No H × Lq × Lk bias is ever held on the sdpa path."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_posswap.attention import attend, sdpa
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.biases import LinearBias, RelativeBias
from tests.reference import dense_attention

HEADS, KEY_HEADS, HEAD_DIM = 9, 3, 64  # SmolLM2-135M


class LargestStorage(TorchDispatchMode):
    """Records the largest memory behind any tensor that an operation returns; views count what they view."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


def smollm2_inputs(length, mask=None):
    q, k, v = (torch.randn(1, heads, length, HEAD_DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    return AttentionInputs(q, k, v, mask, True, HEAD_DIM**-0.5)


def smollm2_bias(kind, length):
    if kind == "linear":
        return LinearBias(torch.rand(HEADS) / 8, torch.arange(1 - length, length), length, length)
    return RelativeBias(torch.randn(HEADS, 2 * length - 1), length, length)


def largest_storage_of(inputs, bias):
    with torch.no_grad(), LargestStorage() as record:
        context = attend(inputs, bias, None, "sdpa")[0]
    assert context.isfinite().all()
    return record.bytes


@pytest.mark.parametrize("kind", ["linear", "relative"])
def test_nothing_is_larger_than_the_queries(kind):
    length = 2048
    inputs, bias = smollm2_inputs(length), smollm2_bias(kind, length)
    queries = 4 * HEADS * length * HEAD_DIM
    # Not even a block of 256 rows of the bias, which would be 4 times as much; the whole bias: 32 times.
    assert largest_storage_of(inputs, bias) <= queries


def learn(inputs, bias):
    """Let q, k, v and the bias's own tensor need a gradient; return them."""
    leaves = (inputs.q, inputs.k, inputs.v, bias.slopes if isinstance(bias, LinearBias) else bias.values)
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves


def largest_storage_of_training(inputs, bias):
    leaves = learn(inputs, bias)
    with LargestStorage() as record:
        context = attend(inputs, bias, None, "sdpa")[0]
        gradients = torch.autograd.grad(context, leaves, torch.ones_like(context))
    assert all(gradient.isfinite().all() for gradient in gradients)
    return record.bytes


@pytest.mark.parametrize("causal", [True, False])
def test_a_training_step_with_learned_values_makes_nothing_larger_than_the_queries(causal):
    length = 2048
    inputs = replace(smollm2_inputs(length), causal=causal)
    largest = largest_storage_of_training(inputs, smollm2_bias("relative", length))
    # A block's scores, for the heads taken together: the record does see the backward pass.
    assert 4 * 3 * 32 * length < largest <= 4 * HEADS * length * HEAD_DIM


def saved_storages(inputs, bias):
    """Storages, by address and size in bytes, of what a forward pass keeps for its backward pass."""
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        context = attend(inputs, bias, None, "sdpa")[0]
    assert context.requires_grad
    return saved


def test_learned_values_keep_nothing_but_what_came_in():
    length = 2048
    inputs, bias = smollm2_inputs(length), smollm2_bias("relative", length)
    leaves = learn(inputs, bias)
    assert saved_storages(inputs, bias).keys() == {x.untyped_storage().data_ptr() for x in leaves}


def test_learned_slopes_keep_one_vector_per_head_besides_what_came_in():
    length = 2048
    inputs, bias = smollm2_inputs(length), smollm2_bias("linear", length)
    came_in = {x.untyped_storage().data_ptr() for x in learn(inputs, bias)}
    made = sum(size for address, size in saved_storages(inputs, bias).items() if address not in came_in)
    assert made <= 3 * 4 * HEADS * (2 * length - 1)  # the values, and their factors


@pytest.mark.parametrize("kind", ["linear", "relative"])
def test_an_explicit_mask_costs_one_block_at_a_time(kind, monkeypatch):
    length, limit = 2048, 4 * 2**20
    monkeypatch.setattr(sdpa, "BLOCK_BYTES", limit)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    inputs, bias = smollm2_inputs(length, mask), smollm2_bias(kind, length)
    assert largest_storage_of(inputs, bias) <= 4 * HEADS * length * HEAD_DIM + limit


def test_flipped_rows_are_a_view_of_the_vector():
    bias = RelativeBias(torch.randn(3, 12), 5, 8)
    reversed_values = bias.values.flip(-1)
    for start, stop in ((0, 5), (1, 3), (4, 5)):
        with LargestStorage() as record:
            rows = bias.flipped_rows(start, stop, reversed_values)
        assert rows.untyped_storage().data_ptr() == reversed_values.untyped_storage().data_ptr()
        assert record.bytes == reversed_values.untyped_storage().nbytes()
        assert torch.equal(rows.flip(1), bias.rows(start, stop)[0])


def test_float32_stays_exact_over_8192_keys():
    length, last = 8192, 8  # the whole text is attended; its first and last queries are checked
    inputs = smollm2_inputs(length)
    bias = smollm2_bias("linear", length)
    with torch.no_grad():
        context = attend(inputs, bias, None, "sdpa")[0]
    for start in (0, length // 2, length - last):
        stop = start + last
        visible = torch.ones(last, length, dtype=torch.bool).tril(start)
        rows = -bias.slopes.double()[:, None, None] * (torch.arange(start, stop)[:, None] - torch.arange(length))
        truth = dense_attention(inputs.q[:, :, start:stop], inputs.k, inputs.v, rows, visible, inputs.scaling)
        torch.testing.assert_close(context[:, :, start:stop].double(), truth, atol=1e-5, rtol=1e-5)


PEAK_SCRIPT = """
import resource, sys, torch
from tests.attention import test_memory
from tests.attention.test_memory import smollm2_bias, smollm2_inputs
measure, kind, length = getattr(test_memory, sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
measure(smollm2_inputs(512), smollm2_bias(kind, 512))  # libraries are loaded, buffers made
inputs, bias = smollm2_inputs(length), smollm2_bias(kind, length)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
largest = measure(inputs, bias)
print(largest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def peak_of(measure, kind, length):
    """The largest storage and the growth of the process's memory, in bytes, measured in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK_SCRIPT, measure.__name__, kind, str(length)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return map(int, result.stdout.split())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux only")
@pytest.mark.parametrize("kind", ["linear", "relative"])
def test_peak_memory_at_16384_tokens(kind):
    length = 16384
    largest, grown = peak_of(largest_storage_of, kind, length)
    queries = 4 * HEADS * length * HEAD_DIM  # 36 MiB; the whole bias would be 9.2 GiB
    assert largest <= queries
    # Keys and values repeated for each query head, the blocks' contexts and the whole context: 4 times the queries.
    assert grown < 6 * queries, f"{grown / 2**20:.0f} MiB"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux only")
def test_peak_memory_of_a_training_step_at_8192_tokens():
    length = 8192
    largest, grown = peak_of(largest_storage_of_training, "relative", length)
    queries = 4 * HEADS * length * HEAD_DIM  # 18 MiB; the whole bias would be 2.3 GiB
    assert largest <= queries
    # The context, its gradient and those of q, k and v: 3.7 times the queries. A group of heads: 1.5. A block: 1.
    assert grown < 8 * queries, f"{grown / 2**20:.0f} MiB"

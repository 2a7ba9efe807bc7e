"""Time the ways to add a relative bias to attention on this machine, as ratios to attention without any bias.

All ways run in turn within each repeat, so that a change of the machine's speed meets all of them alike; the figure is
the median of the repeats' ratios. Prints a Markdown table for the forward pass and one for a training step: forward and
backward pass of attention alone, with gradients of queries, keys, values and, where the bias learns, of its vector.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.attention import attend
from hf_posswap.attention.folding import fold_linear
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.sdpa import blockwise_attention, plain_attention
from hf_posswap.common.biases import LinearBias, RelativeBias
from hf_posswap.schemes.alibi import alibi_slopes

LONGEST_KEPT = 4096
"""Longest text, in tokens, for ways that keep heads × length × length for the backward pass."""

Ways = dict[str, Callable[[], object]]


def make_inputs(length: int, heads: int, head_dim: int, dtype: torch.dtype) -> AttentionInputs:
    """Return random causal attention without a mask."""
    q, k, v = (torch.randn(1, heads, length, head_dim).to(dtype) for _ in range(3))
    return AttentionInputs(q, k, v, None, causal=True, scaling=head_dim**-0.5)


def alibi(length: int, heads: int) -> LinearBias:
    """Return ALiBi's bias."""
    return LinearBias(alibi_slopes(heads), torch.arange(1 - length, length), length, length)


def forward_ways(inputs: AttentionInputs) -> Ways:
    """Return the ways to compute the same ALiBi attention, the first one without its bias."""
    length, (_, heads, _, head_dim) = inputs.query_length, inputs.q.shape
    bias = alibi(length, heads)
    mask = bias.rows(0, length).masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    ways: Ways = {
        "no bias": lambda: plain_attention(inputs),
        "strided view": lambda: attend(inputs, bias, None, "sdpa")[0],
        "extra channels": lambda: plain_attention(fold_linear(inputs, bias))[..., :head_dim],
        "ready-made dense mask": lambda: F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, attn_mask=mask),
        "eager": lambda: attend(inputs, bias, None, "eager")[0],
    }
    return {name: torch.no_grad()(way) for name, way in ways.items()}


def training_ways(inputs: AttentionInputs) -> Ways:
    """Return the ways to a training step, the first one without bias."""
    length, heads = inputs.query_length, inputs.q.shape[1]
    fixed = alibi(length, heads).as_relative()
    learned = RelativeBias(fixed.values.clone().requires_grad_(), length, length)
    tensors = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    grad = torch.randn_like(inputs.q)

    def step(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), leaves, grad)

    ways = {
        "no bias": step(lambda: plain_attention(inputs), tensors),
        "fixed bias": step(lambda: attend(inputs, fixed, None, "sdpa")[0], tensors),
        "learned bias": step(lambda: attend(inputs, learned, None, "sdpa")[0], [*tensors, learned.values]),
    }
    if length <= LONGEST_KEPT:
        blocks = step(lambda: blockwise_attention(inputs, learned), [*tensors, learned.values])
        eager = step(lambda: attend(inputs, learned, None, "eager")[0], [*tensors, learned.values])
        ways |= {"learned bias, query blocks under autograd": blocks, "learned bias, eager": eager}
    return ways


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(functions: Ways, repeats: int) -> dict[str, float]:
    """Return each way's median ratio to the first one."""
    for function in functions.values():
        function()
    first, *others = functions
    times = [{name: seconds(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: statistics.median(row[name] / row[first] for row in times) for name in others}


def print_table(title: str, make_ways: Callable[[AttentionInputs], Ways], arguments: argparse.Namespace) -> None:
    """Measure and print one table, a row as soon as it is measured; "–" where a way keeps too much memory."""
    columns: list[str] = []
    for dtype in (torch.float32, torch.bfloat16):
        for length in sorted(arguments.lengths):
            inputs = make_inputs(length, arguments.heads, arguments.head_dim, dtype)
            row = ratios(make_ways(inputs), arguments.repeats)
            if not columns:
                columns = list(row)
                print(f"\n{title}, {arguments.heads} heads of {arguments.head_dim}\n")
                print("| " + " | ".join(["dtype", "length", *columns]) + " |\n" + "| --- " * (2 + len(columns)) + "|")
            figures = [f"{row[name]:.2f}" if name in row else "–" for name in columns]
            print(f"| {str(dtype).removeprefix('torch.')} | {length} | " + " | ".join(figures) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["forward", "training"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tables = {"forward": ("Forward pass", forward_ways), "training": ("Training step", training_ways)}
    for name, (title, make_ways) in tables.items():
        if arguments.only in (None, name):
            print_table(title, make_ways, arguments)


if __name__ == "__main__":
    main()

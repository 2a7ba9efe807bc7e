"""Time the ways to add a relative bias to attention on this machine, as ratios to attention without any bias.

All ways run in turn within each repeat, so that a change of the machine's speed meets all of them alike; the figure is
the median of the repeats' ratios. Prints a Markdown table.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.attention import attend
from hf_posswap.attention.folding import fold_linear
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.sdpa import plain_attention
from hf_posswap.biases import LinearBias
from hf_posswap.schemes.alibi import alibi_slopes

HEADS, HEAD_DIM = 9, 64


def ways(length: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """Return the ways to compute the same ALiBi attention, the first one without its bias."""
    q, k, v = (torch.randn(1, HEADS, length, HEAD_DIM).to(dtype) for _ in range(3))
    inputs = AttentionInputs(q, k, v, None, causal=True, scaling=HEAD_DIM**-0.5)
    bias = LinearBias(alibi_slopes(HEADS), torch.arange(1 - length, length), length, length)
    mask = bias.rows(0, length).masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    return {
        "no bias": lambda: plain_attention(inputs),
        "strided view": lambda: attend(inputs, bias, None, "sdpa")[0],
        "extra channels": lambda: plain_attention(fold_linear(inputs, bias))[..., :HEAD_DIM],
        "ready-made dense mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "eager": lambda: attend(inputs, bias, None, "eager")[0],
    }


def seconds(function: Callable[[], Tensor]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(length: int, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Return each way's median ratio to attention without a bias."""
    functions = ways(length, dtype)
    for function in functions.values():
        function()
    times = [{name: seconds(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: statistics.median(row[name] / row["no bias"] for row in times) for name in list(functions)[1:]}


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    header: list[str] = []
    for dtype in (torch.float32, torch.bfloat16):
        for length in arguments.lengths:
            row = ratios(length, dtype, arguments.repeats)
            if not header:
                header = ["dtype", "length", *row]
                print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
            print(
                f"| {str(dtype).removeprefix('torch.')} | {length} | "
                + " | ".join(f"{r:.2f}" for r in row.values())
                + " |"
            )


if __name__ == "__main__":
    main()

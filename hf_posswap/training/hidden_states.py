"""The hidden states after every transformer block, and their distance to those of the stock model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.architectures import architecture_of
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import plain_model


@contextmanager
def hidden_states(model: Any, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Collect what each block of a model returns in a forward within the `with` block, (B, L, D).

    Args:
        model: the model, as Accelerate prepared it or plain.
        wanted: False: nothing is collected.
    """
    found: list[Tensor] = []
    handles = []
    if wanted:
        core = core_of(plain_model(extract_model_from_parallel(model)))
        for block, _ in architecture_of(core.config).blocks(core):
            handles.append(block.register_forward_hook(lambda _, __, output: found.append(states_of(output))))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def states_of(output: Any) -> Tensor:
    """Return the hidden states in what a block returns."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def mean_distance(own: Sequence[Tensor], stock: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return the distance of each text's hidden states to the stock model's, float32, (B,).

    It is 1 − cosine, the mean over the tokens and the layers. The cosine is bounded: a few tokens with massive
    activations (Sun et al., 2402.17762) would dominate a squared error.

    Args:
        own: the hidden states after each block, (B, L, D).
        stock: those of the stock model.
        mask: 1 for the tokens that count, (B, L).
    """
    total = mask.new_zeros(mask.shape[0]).float()
    for one, other in zip(own, stock, strict=True):
        apart = 1 - F.cosine_similarity(one.float(), other.float(), dim=-1)
        total = total + (apart * mask).sum(1) / mask.sum(1).clamp(min=1)
    return total / len(own)

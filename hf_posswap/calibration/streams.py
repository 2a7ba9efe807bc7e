"""What the stock and the swapped model hand from block to block, and the queries and keys each layer makes of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_posswap.architectures import Architecture
from hf_posswap.modules import CONTEXT, ForwardContext
from hf_posswap.structure import natively

QUERY_STEP = 4
"""Every fourth query is compared: neighbours say much the same, and all of them would cost four times as much."""


@dataclass
class Stream:
    """One model's way through the layers for one batch: what enters the next block."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def step(self, block: nn.Module) -> None:
        """Run the next block."""
        output = block(self.hidden, *self.arguments, **self.keywords)
        self.hidden = output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class Projections:
    """Queries and keys of one batch in one layer, of the stock model and of the swapped one.

    Scores are made of them one text at a time: those of all batches at once would need tokens · L · H numbers.

    Attributes:
        stock_query: the compared queries after the native mechanism, (B, H, n, d); see `compared_queries`.
        stock_key: all keys after the native mechanism, (B, Hkv, L, d).
        swapped_query: the compared queries after the scheme's transform, (B, H, n, d).
        swapped_key: all keys after the scheme's transform, (B, Hkv, L, d).
        scaling: the factor on q·k.
    """

    stock_query: Tensor
    stock_key: Tensor
    swapped_query: Tensor
    swapped_key: Tensor
    scaling: float

    def __len__(self) -> int:
        """Number of texts."""
        return self.stock_key.shape[0]

    @property
    def length(self) -> int:
        """L, the texts' number of tokens."""
        return self.stock_key.shape[2]

    def scores(self, text: int) -> tuple[Tensor, Tensor]:
        """Return the scaled scores of one text, stock and swapped without its bias: float32, (H, n, L)."""
        stock = _scores(self.stock_query[text], self.stock_key[text], self.scaling)
        return stock, _scores(self.swapped_query[text], self.swapped_key[text], self.scaling)

    def scaled_queries(self, text: int) -> Tensor:
        """Return the swapped model's compared queries of one text, times the scaling: float32, (H, n, d)."""
        return self.swapped_query[text].float() * self.scaling


def _scores(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    return (query.float() * scaling) @ key.float().transpose(-1, -2)


def compared_queries(length: int, device: torch.device | None = None) -> Tensor:
    """Return the indices of the queries that are compared in a text of this length, the last one among them."""
    return torch.arange((length - 1) % QUERY_STEP, length, QUERY_STEP, device=device)


class _Entered(Exception):
    """Carries what enters the first block out of the base model's forward."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream


def enter(base: Any, first: nn.Module, text: Tensor) -> Stream:
    """Return what enters the first block when the base model reads a text."""

    def stop(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        raise _Entered(Stream(arguments[0], arguments[1:], dict(keywords)))

    handle = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        base(text, use_cache=False)
    except _Entered as entered:
        return entered.stream
    finally:
        handle.remove()
    raise RuntimeError("the base model's forward did not reach its first block")


def _attention_inputs(block: nn.Module, attention: nn.Module, stream: Stream) -> tuple[Tensor, dict[str, Any]]:
    """Return the hidden states and keywords that a block hands to its attention module."""

    def stop(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden = keywords.pop("hidden_states") if not arguments else arguments[0]
        raise _Entered(Stream(hidden, (), keywords))

    handle = attention.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        block(stream.hidden, *stream.arguments, **stream.keywords)
    except _Entered as entered:
        return entered.stream.hidden, entered.stream.keywords
    finally:
        handle.remove()
    raise RuntimeError("the block did not reach its attention module")


def projected(architecture: Architecture, block: nn.Module, attention: Any, student: Stream) -> tuple[Tensor, Tensor]:
    """Return the queries (B, H, L, d) and keys (B, Hkv, L, d) that a swapped layer projects, before its scheme."""
    hidden, _ = _attention_inputs(block, attention, student)
    q, k, _ = architecture.project(attention, hidden)
    return q, k


def projections(
    base: Any, architecture: Architecture, block: nn.Module, attention: Any, teacher: Stream, student: Stream
) -> Projections:
    """Return the queries and keys that a layer makes of one batch, as the stock layer and as the swapped one."""
    with natively(base, architecture):
        hidden, keywords = _attention_inputs(block, attention, teacher)
    q, k, _ = architecture.project(attention, hidden)
    stock_query, stock_key = architecture.rotate_natively(attention, q, k, keywords)
    hidden, keywords = _attention_inputs(block, attention, student)
    context: ForwardContext = keywords[CONTEXT]
    q, k, _ = architecture.project(attention, hidden)
    if attention.pos_keep_native:
        q, k = architecture.rotate_natively(attention, q, k, keywords)
    q, k = _positioned(attention, q, k, context)
    compared = compared_queries(q.shape[2], q.device)
    # Slices are copied and keys made compact, so that nothing else of the fused projection stays in memory.
    return Projections(
        stock_query[:, :, compared], stock_key.contiguous(), q[:, :, compared], k.contiguous(), attention.scaling
    )


def turned_units(block: nn.Module, attention: Any, student: Stream, head_dim: int) -> Tensor:
    """Return what a layer's scheme makes of unit vector e as the key at position j, float32, (L, d, d)[j, e]."""
    hidden, keywords = _attention_inputs(block, attention, student)
    units = torch.eye(head_dim, device=hidden.device)[:, None, None].expand(-1, -1, hidden.shape[1], -1)
    _, turned = _positioned(attention, units, units, keywords[CONTEXT])
    return turned[:, 0].transpose(0, 1)


def _positioned(attention: Any, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
    """Return q and k as the scheme turns them in a text that is read whole."""
    q, k = attention.pos_scheme.transform(q, k, context.positions, context.prepared)
    return attention.pos_scheme.transform_cached(q, k, context.positions, context.prepared)

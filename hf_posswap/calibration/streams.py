"""Runs the stock and the swapped model block by block, and records the queries and keys of each layer.

Queries and keys are recorded at the attention function, which every family calls with them. So no family's projections
have to be computed separately.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_posswap.architectures import Architecture
from hf_posswap.attention.interface import CONTEXT, IMPLEMENTATION, current, handed_on
from hf_posswap.swapped.applying import natively
from hf_posswap.swapped.attention_probe import RECORDER, Recorded, seen_through
from hf_posswap.swapped.context import ForwardContext
from hf_posswap.swapped.written import named

QUERY_STEP = 4
"""Every fourth query is compared: adjacent queries have similar scores, and all would cost four times as much."""


@dataclass
class Stream:
    """The state of one model's forward over one batch, between two blocks.

    Attributes:
        hidden: hidden states (B, L, D).
        inputs: further arguments and keywords of each block, which may differ by the kind of layer.
        context: the context of the swapped model's forward; None in the stock model.
        done: number of blocks that have run.
        entered: the hidden states that each block got in the whole forward; empty unless `enter` keeps them.
    """

    hidden: Tensor
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]]
    context: ForwardContext | None
    done: int = 0
    entered: tuple[Tensor, ...] = ()

    def at(self, layer: int) -> "Stream":
        """Return the stream before a block, if `enter` kept the hidden states."""
        return Stream(self.entered[layer], self.inputs, self.context, layer)

    def step(self, block: nn.Module) -> None:
        """Run the next block."""
        output = self.run(block)
        self.hidden = output[0] if isinstance(output, tuple) else output
        self.done += 1

    def run(self, block: nn.Module, context: ForwardContext | None = None) -> Any:
        """Return the next block's output for the hidden states, with `context` instead of the own one if given."""
        arguments, keywords = self.inputs[self.done]
        context = context or self.context
        handed = {name: context if name == CONTEXT else value for name, value in keywords.items()}
        if "hidden_states" in handed:
            handed["hidden_states"] = self.hidden
        else:
            arguments = (self.hidden, *arguments[1:])
        with current(context):
            return block(*arguments, **handed)


@dataclass(frozen=True)
class Projections:
    """Queries and keys of one batch in one layer, of the stock model and of the swapped one.

    Scores are computed from them one text at a time: those of all batches together would need tokens · L · H numbers.

    Attributes:
        stock_query: the compared queries after the native mechanism, (B, H, n, d); see `compared_queries`.
        stock_key: all keys after the native mechanism, (B, Hkv, L, d).
        swapped_query: the compared queries after the scheme's transform, (B, H, n, d).
        swapped_key: all keys after the scheme's transform, (B, Hkv, L, d).
        scaling: the factor on q·k.
        stock_bias: the bias that the stock model adds to its scaled scores, (B|1, H|1, n|1, L), or None.
        window: the sliding window of the swapped layer: only keys at |Δ| < window are compared; None: all keys are.
    """

    stock_query: Tensor
    stock_key: Tensor
    swapped_query: Tensor
    swapped_key: Tensor
    scaling: float
    stock_bias: Tensor | None = None
    window: int | None = None

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
        if self.stock_bias is not None:
            stock = stock + self.stock_bias[text if len(self.stock_bias) > 1 else 0].float()
        return stock, _scores(self.swapped_query[text], self.swapped_key[text], self.scaling)

    def scaled_queries(self, text: int) -> Tensor:
        """Return the swapped model's compared queries of one text, times the scaling: float32, (H, n, d)."""
        return self.swapped_query[text].float() * self.scaling


def _scores(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    return (query.float() * scaling) @ key.float().transpose(-1, -2)


def compared_queries(length: int, device: torch.device | None = None) -> Tensor:
    """Return the indices of the queries that are compared in a text of this length; they include the last query."""
    return torch.arange((length - 1) % QUERY_STEP, length, QUERY_STEP, device=device)


def enter(base: Any, blocks: list[nn.Module], text: Tensor | Mapping[str, Tensor], every: bool = False) -> Stream:
    """Run the base model on a text; return the input of its first block and the further arguments of each block.

    Args:
        base: the base model.
        blocks: its blocks.
        text: token ids (B, L), or arguments of the base model by name.
        every: keep the input of every block, as `Stream.entered`.
    """
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    entered: list[Tensor] = []
    contexts: list[Any] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden = keywords["hidden_states"] if "hidden_states" in keywords else arguments[0]
        if not entered:
            contexts.append(handed_on(dict(keywords)))
        if every or not entered:
            entered.append(hidden)
        rest = {name: None if name == "hidden_states" else value for name, value in keywords.items()}
        inputs.append(((None, *arguments[1:]) if arguments else (), rest))

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    try:
        uncached = {"use_cache": False} if "use_cache" in _parameters(base) else {}
        base(text, **uncached) if isinstance(text, Tensor) else base(**text, **uncached)
    finally:
        for handle in handles:
            handle.remove()
    if not entered:
        raise RuntimeError("the base model's forward did not reach its first block")
    context = contexts[0] if isinstance(contexts[0], ForwardContext) else None
    return Stream(entered[0], inputs, context, entered=tuple(entered) if every else ())


def _parameters(base: Any) -> tuple[str, ...]:
    return getattr(base, "stock_arguments", None) or tuple(inspect.signature(base.forward).parameters)


def stock_record(architecture: Any, block: nn.Module, attention: Any, stream: Stream) -> Recorded:
    """Return the queries and keys of a stock layer after the native mechanism, and its mask, and its bias if any."""
    if architecture.writes_attention:
        return _written_record(architecture, block, attention, stream)
    with seen_through(attention, RECORDER):
        try:
            stream.run(block)
        except Recorded as recorded:
            return recorded
    raise RuntimeError("the block did not reach its attention function")


def _written_record(architecture: Any, block: nn.Module, attention: Any, stream: Stream) -> Recorded:
    """Return what `stock_record` returns, for a family whose attention does not use transformers' interface."""

    def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = named(type(module), args, kwargs)
        q, k, _ = architecture.project(module, arguments["hidden_states"])
        bias = architecture.native_scores(module, arguments)
        raise Recorded(q, k, q.shape[-1] ** -0.5, (q, k), bias, arguments.get("attention_mask"))

    handle = attention.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        stream.run(block)
    except Recorded as recorded:
        return recorded
    finally:
        handle.remove()
    raise RuntimeError("the block did not reach its attention module")


def _swapped_record(block: nn.Module, attention: Any, stream: Stream) -> Recorded:
    """Return the queries and keys of a swapped layer, both after its scheme's transform and before it."""
    assert stream.context is not None

    def record(call: Any, pair: tuple[Tensor, Tensor], scaling: float, projected: tuple[Tensor, Tensor]) -> None:
        raise Recorded(*pair, scaling, projected)

    with seen_through(attention, IMPLEMENTATION):
        try:
            stream.run(block, stream.context._replace(record=record))
        except Recorded as recorded:
            return recorded
    raise RuntimeError("the block did not reach its attention function")


def projected(block: nn.Module, attention: Any, student: Stream) -> tuple[Tensor, Tensor]:
    """Return the queries (B, H, L, d) and keys (B, Hkv, L, d) that a swapped layer projects, before its scheme."""
    return _swapped_record(block, attention, student).projected


def projections(
    base: Any, architecture: Architecture, block: nn.Module, attention: Any, teacher: Stream, student: Stream
) -> Projections:
    """Return the queries and keys that a layer computes for one batch, as the stock layer and as the swapped one."""
    with natively(base, architecture):
        stock = stock_record(architecture, block, attention, teacher)
    ours = _swapped_record(block, attention, student)
    compared = compared_queries(ours.q.shape[2], ours.q.device)
    # Copy slices and make keys contiguous, so that the rest of a fused projection does not stay in memory.
    bias = stock.bias
    if bias is not None and bias.shape[-2] > 1:
        bias = bias[..., compared, :]
    return Projections(
        stock.q[:, :, compared], stock.k.contiguous(), ours.q[:, :, compared], ours.k.contiguous(), ours.scaling, bias,
        attention.pos_scheme.window,
    )  # fmt: skip


def turned_units(attention: Any, student: Stream, head_dim: int, heads: int) -> Tensor:
    """Return the scheme's transform of unit vector e as the key at position j, float32, (1|Hkv, L, d, d)[h, j, e].

    Args:
        attention: the swapped attention module.
        student: the swapped model's stream before the layer.
        head_dim: d.
        heads: Hkv, the number of key heads. If they all transform keys alike, the result has one entry for all.
    """
    assert student.context is not None
    hidden = student.hidden
    different = heads if attention.pos_scheme.by_head else 1
    units = torch.eye(head_dim, device=hidden.device)[:, None, None].expand(-1, different, hidden.shape[1], -1)
    _, turned = _positioned(attention, units, units, student.context)
    return turned.permute(1, 2, 0, 3)


def _positioned(attention: Any, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
    """Return q and k after the scheme's transforms, for a text in one forward without a cache."""
    context = context.of_part(attention.pos_part)
    q, k = attention.pos_scheme.transform(q, k, context.positions, context.prepared)
    return attention.pos_scheme.transform_cached(q, k, context.positions, context.prepared)

"""The attention stage of healing: each layer learns the stock layer's attention distribution, layers apart.

Each layer of the swapped model gets the hidden states that reach the stock layer, and the loss is the KL divergence of
its attention distribution from the stock layer's. Only what computes the scores learns: the projections of queries and
keys, and the scheme. A layer runs up to its attention function only: without values, MLP and head, and without a
backward pass through the layers below (attention transfer as in LoLCATs, Zhang et al., 2410.10254, section 3.2).
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_posswap.architectures import architecture_of
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.attention.eager import weights_of
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.interface import CONTEXT, IMPLEMENTATION
from hf_posswap.attention.windows import SlidingWindow, windowed
from hf_posswap.calibration.streams import Stream, enter, stock_record
from hf_posswap.common.biases import Bias, DenseBias
from hf_posswap.swapped.attention_probe import Recorded, seen_through
from hf_posswap.swapped.context import ForwardContext
from hf_posswap.swapped.layer_call import full_precision
from hf_posswap.swapped.modules import prepare_arguments
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import plain_model
from hf_posswap.training.optimization import scheme_parameters
from hf_posswap.training.options import HealingError

ROWS_OF_SCORES = 2**22
"""Number of scores that are held at once: queries are compared in blocks of as many as this permits."""
LEAST = 1e-30
"""Smallest attention weight in a logarithm; float32 has smaller ones, but their quotients overflow."""
PROBED_TOKENS = 8
READABLE_BACKENDS = ("eager", "sdpa")
"""Backends whose masks are tensors, or None."""


@dataclass(frozen=True)
class Attention:
    """What computes the attention distribution of a layer.

    Attributes:
        inputs: queries, keys and mask; the values are not used.
        bias: the bias on the scaled scores, or None.
    """

    inputs: AttentionInputs
    bias: Bias | None

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the weights of the queries start…stop−1, float32, (B, H, n, Lk), with a column for sinks if any."""
        weights = weights_of(self.inputs, self.bias, start, stop)
        if self.inputs.sinks is None:
            return weights
        return torch.cat([weights, (1 - weights.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)


def attention_divergence(stock: Attention, own: Attention, counted: Tensor) -> Tensor:
    """Return the sum over queries of KL(stock ‖ own), the mean over the heads, in nats, float32, ().

    Args:
        stock: the stock layer's attention.
        own: the swapped layer's attention.
        counted: 1 for the queries that count, (B, L).
    """
    batch, heads, length, _ = own.inputs.q.shape
    rows = max(1, ROWS_OF_SCORES // (batch * heads * length))

    def part(q: Tensor, k: Tensor, start: int, stop: int) -> Tensor:
        with torch.no_grad():
            wanted = stock.rows(start, stop)
        found = own.rows(start, stop).clamp(min=LEAST)
        apart = (torch.xlogy(wanted, wanted) - wanted * found.log()).sum(-1).mean(1)
        return (apart * counted[:, start:stop]).sum()

    total = counted.new_zeros((), dtype=torch.float32)
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        # The scores of a block are computed again in the backward pass, so that those of one block are held at a time.
        total = total + checkpoint(part, own.inputs.q, own.inputs.k, start, stop, use_reentrant=False)
    return total


class AttentionTransfer:
    """The losses and gradients of the attention stage.

    Args:
        model: the swapped model, or peft's wrapper of it.
        teacher: the stock model.
        readable: length of the longest text that the teacher can read; longer texts are cut.

    Attributes:
        learning: the parameters that learn, by name: those of the attention modules and of the scheme that require a
            gradient and change a distribution.

    Raises:
        HealingError: the scheme acts in no layer, nothing learns, or the masks of the model's backend cannot be read.
    """

    def __init__(self, model: Any, teacher: Any, readable: int) -> None:
        self.model, self.readable = model, readable
        self.base, self.stock = core_of(plain_model(model)), core_of(plain_model(teacher))
        self.architecture = architecture_of(self.base.config)
        self.layers = self.architecture.blocks(self.base)
        self.stock_layers = self.architecture.blocks(self.stock)
        backend = self.base.config._attn_implementation
        if backend not in READABLE_BACKENDS:
            raise HealingError(
                f"supervision 'attention' cannot read the masks of backend {backend!r}. Choose one that it can read, "
                f'{" or ".join(READABLE_BACKENDS)}: model.set_attn_implementation("sdpa"), or leave attention out.'
            )
        self.swapped = [number for number, (_, module) in enumerate(self.layers) if hasattr(module, "pos_scheme")]
        if not self.swapped:
            raise HealingError(
                f"supervision 'attention' brings the layers' attention to the stock model's, and scheme "
                f"{self.base.pos_scheme.name!r} acts in no layer of this model. Leave attention out."
            )
        self.learning = self._learning()
        if not self.learning:
            raise HealingError(
                "supervision 'attention' has nothing to train: no parameter of the scheme, or of the projections of "
                "queries and keys, requires a gradient. Leave attention out."
            )

    def _learning(self) -> dict[str, nn.Parameter]:
        """Return the parameters that get a gradient from a short text: found by running, for any family."""
        inside = {id(weight) for _, attention in self.layers for weight in attention.parameters()}
        inside |= {id(weight) for weight in scheme_parameters(self.model).values()}
        named = {name: weight for name, weight in self.model.named_parameters() if id(weight) in inside}
        asked = {name: weight for name, weight in named.items() if weight.requires_grad}
        if not asked:
            return {}
        before = {name: weight.grad for name, weight in asked.items()}
        tokens = torch.arange(min(PROBED_TOKENS, self.readable), device=self.base.device)[None]
        rows = self.base.get_input_embeddings().num_embeddings
        try:
            for weight in asked.values():
                weight.grad = None
            self.accumulate({"input_ids": tokens % rows}, 1.0, list(asked.values()))
            return {name: weight for name, weight in asked.items() if weight.grad is not None}
        finally:
            for name, weight in asked.items():
                weight.grad = before[name]

    def counted(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return 1 for the queries that count, (B, L): those of tokens that the teacher can read."""
        ids = inputs["input_ids"][:, : self.readable]
        mask = inputs.get("attention_mask")
        return torch.ones_like(ids) if mask is None else mask[:, : self.readable]

    def accumulate(
        self, inputs: Mapping[str, Tensor], share: float, learning: list[nn.Parameter] | None = None
    ) -> float:
        """Add the gradient of a batch's loss; return the loss: KL summed over queries, the mean over heads and layers.

        Args:
            inputs: arguments of the base model by name.
            share: factor on the gradient.
            learning: the parameters whose gradients are computed. Default: those that learn.
        """
        with _computed_once(self.model):
            return self._accumulate(inputs, share, list(self.learning.values()) if learning is None else learning)

    def _accumulate(self, inputs: Mapping[str, Tensor], share: float, learning: list[nn.Parameter]) -> float:
        inputs = {name: value[:, : self.readable] for name, value in inputs.items()}
        counted = self.counted(inputs)
        with torch.no_grad():
            stock = enter(self.stock, [block for block, _ in self.stock_layers], inputs, every=True)
        context = self._context(inputs)
        own = self._own_stream(inputs, stock, context)
        total = 0.0
        for number in self.swapped:
            with torch.no_grad():
                wanted = self._stock_attention(number, stock)
            found = self._own_attention(number, own, context, wanted)
            wanted = self._within(number, wanted)
            loss = attention_divergence(wanted, found, counted) / len(self.swapped)
            if loss.requires_grad:
                torch.autograd.backward(loss * share, inputs=learning)
            total += float(loss.detach())
        return total

    def _own_stream(self, inputs: Mapping[str, Tensor], stock: Stream, context: ForwardContext) -> Stream:
        """Return the inputs of the swapped model's blocks: the stock model's hidden states.

        Where positions act at the embeddings, by a table of the stock model or by the scheme, the stock model's hidden
        states hold positions that the swapped model does not have. There the swapped model's own are taken.
        """
        table = self.architecture.table_path(self.base) is not None
        if not table and self.base.pos_scheme.embed(context.positions) is None:
            return stock
        with torch.no_grad(), _uncached(self.base.device.type):
            return enter(self.base, [block for block, _ in self.layers], inputs, every=True)

    def _context(self, inputs: Mapping[str, Tensor]) -> ForwardContext:
        """Return the context of a forward on the inputs, with gradients to the scheme."""
        arguments: dict[str, Any] = dict(inputs)
        prepare_arguments(self.base, arguments)
        table = self.architecture.position_table(self.base)
        if isinstance(table, RetiredTable):
            table.add(None)
        context: ForwardContext = arguments[CONTEXT]
        return context

    def _stock_attention(self, number: int, stream: Stream) -> Attention:
        block, attention = self.stock_layers[number]
        found = stock_record(self.architecture, block, attention, stream.at(number))
        bias = None if found.bias is None else DenseBias(_rows_of(found.bias))
        return Attention(self._inputs(found.q, found.k, found.scaling, found), bias)

    def _inputs(self, q: Tensor, k: Tensor, scaling: float, stock: Any) -> AttentionInputs:
        causal = self.architecture.is_causal(self.base.config)
        return AttentionInputs(q, k, k, stock.mask, causal, scaling, softcap=stock.softcap, sinks=stock.sinks)

    def _own_attention(self, number: int, stream: Stream, context: ForwardContext, stock: Attention) -> Attention:
        """Return the swapped layer's attention, with the mask of the stock layer."""
        block, attention = self.layers[number]
        if context.learns:  # values that all layers share have one graph, and each layer has its own backward pass
            with full_precision(context.positions.query):
                context = context._replace(prepared=context.prepared_for(context.positions))
        found: list[tuple[Tensor, Tensor, float, Bias | None]] = []

        def record(call: Any, pair: tuple[Tensor, Tensor], scaling: float, projected: tuple[Tensor, Tensor]) -> None:
            bias = None if call.score_inputs is None else call.stages[-1][0].bias(call.score_inputs)
            found.append((*pair, scaling, bias))
            raise Recorded(*pair, scaling, projected)

        with seen_through(attention, IMPLEMENTATION):
            try:
                stream.at(number).run(block, context._replace(record=record, shared={}))
            except Recorded:
                q, k, scaling, bias = found[0]
                own = Attention(self._inputs(q, k, scaling, stock.inputs), bias)
                return self._within(number, own)
        raise RuntimeError("the block did not reach its attention function")

    def _within(self, number: int, attention: Attention) -> Attention:
        """Return the attention within the swapped layer's sliding window, if it has one."""
        swapped: Any = self.layers[number][1]
        window: int | None = swapped.pos_scheme.window
        if window is None:
            return attention
        inputs = attention.inputs
        seen = SlidingWindow(window, 0, inputs.causal)
        mask = windowed(inputs.mask, seen, inputs.q, inputs.key_length, self.base.config._attn_implementation)
        return Attention(AttentionInputs(**vars(inputs) | {"mask": mask}), attention.bias)


def _rows_of(scores: Tensor) -> Any:
    """Return what computes rows of scores (B|1, H|1, L|1, L)."""

    def rows(start: int, stop: int) -> Tensor:
        return (scores if scores.shape[-2] == 1 else scores[..., start:stop, :]).float()

    return rows


@contextmanager
def _computed_once(model: nn.Module) -> Iterator[None]:
    """Turn gradient checkpointing off within a `with` block: a layer that runs alone cannot be run again."""
    checkpointed: list[Any] = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    try:
        for module in checkpointed:
            module.gradient_checkpointing = False
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True


def _uncached(device: str) -> AbstractContextManager[Any]:
    """Keep autocast, if it is on, from handing on weights that it cast without a gradient."""
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)

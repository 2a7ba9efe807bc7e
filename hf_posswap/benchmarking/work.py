"""The timed work: one call of a base model or of its attention, which can be repeated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from hf_posswap.architectures import architecture_of
from hf_posswap.benchmarking.settings import BenchmarkSettings
from hf_posswap.common.positions import Positions
from hf_posswap.swapped.cache_view import cache_keyword
from hf_posswap.swapped.context import ForwardContext
from hf_posswap.swapped.layer_call import LayerCall
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.stock_function import stock_function

MakeMask = Callable[[int, int], Tensor]
"""Function that computes an additive mask (1, H, Lq, Lk) for the last Lq of Lk tokens."""


@dataclass(frozen=True)
class Work:
    """One call, and the tensors that it needs.

    Attributes:
        call: does the work once and keeps no memory.
        resident: tensors that are in memory before the call: weights, inputs, cache.
    """

    call: Callable[[], object]
    resident: Sequence[Tensor] = field(default_factory=list)

    def resident_bytes(self) -> int:
        """Return the size in bytes of the tensors that are in memory before the call."""
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in self.resident}
        return sum(storages.values())


def model_work(mode: str, model: Any, length: int, settings: BenchmarkSettings, mask: MakeMask | None = None) -> Work:
    """Return the work of a base model, stock or swapped.

    Args:
        mode: "prefill" (one forward over the whole text, which fills a causal model's cache), "training" (forward and
            backward pass of all parameters, without an optimizer) or "decode" (one token, with `length` cached).
        model: a base model without a head.
        length: number of tokens.
        settings: batch and seed.
        mask: for stock models with a dense bias: function that computes the mask.
    """
    return {"prefill": _prefill, "training": _training, "decode": _decode}[mode](model, length, settings, mask)


def _tokens(model: Any, length: int, settings: BenchmarkSettings) -> Tensor:
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randint(model.config.vocab_size, (settings.batch, length), generator=generator).to(model.device)


def _weights(model: Any) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _prefill(model: Any, length: int, settings: BenchmarkSettings, mask: MakeMask | None) -> Work:
    tokens = _tokens(model, length, settings)
    ready = None if mask is None else mask(length, length)

    @torch.no_grad()
    def call() -> None:
        model(tokens, attention_mask=ready)

    return Work(call, [*_weights(model), tokens, *([] if ready is None else [ready])])


def _training(model: Any, length: int, settings: BenchmarkSettings, mask: MakeMask | None) -> Work:
    tokens = _tokens(model, length, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    gradient = torch.randn(*tokens.shape, model.config.hidden_size, generator=generator).to(model.device, model.dtype)
    cached = {"use_cache": False} if architecture_of(model.config).is_causal(model.config) else {}

    def call() -> None:
        # The models are in evaluation mode: dropout would disable fused kernels in both, and today's models have none.
        made = None if mask is None else mask(length, length)  # a trainable bias has to be computed in each step
        model(tokens, attention_mask=made, **cached)[0].backward(gradient)
        for parameter in model.parameters():
            parameter.grad = None

    return Work(call, [*_weights(model), tokens, gradient])


def _decode(model: Any, length: int, settings: BenchmarkSettings, mask: MakeMask | None) -> Work:
    token = _tokens(model, 1, settings)
    with torch.no_grad():
        first = model(token, use_cache=True)
    name = cache_keyword(first)
    assert name is not None
    generator = torch.Generator().manual_seed(settings.seed)
    cache = DynamicCache(config=model.config)
    kept = []
    # The model's own cache says how wide keys and values are: some schemes store numbers of their own beside the keys.
    for number, layer in enumerate(first[name].layers):
        shapes = ((*stored.shape[:2], length, stored.shape[3]) for stored in (layer.keys, layer.values))
        pair = [torch.randn(shape, generator=generator).to(model.device, model.dtype) for shape in shapes]
        cache.update(*pair, number)
        kept.append((cache.layers[number].keys, cache.layers[number].values))
    ready = None if mask is None else mask(1, length + 1)

    @torch.no_grad()
    def call() -> None:
        model(token, use_cache=True, attention_mask=ready, **{name: cache})
        for layer, (keys, values) in zip(cache.layers, kept, strict=True):
            layer.keys, layer.values = keys, values

    held = [tensor for pair in kept for tensor in pair]
    return Work(call, [*_weights(model), *held, token, *([] if ready is None else [ready])])


def attention_work(
    mode: str, model: Any, length: int, settings: BenchmarkSettings, mask: MakeMask | None = None
) -> Work:
    """Return the work of the first layer's attention alone, without its projections: q, k and v are random.

    So are the hidden states, of which a scheme may compute values for each token.

    Args:
        mode: "attention" (the forward pass) or "attention-training" (forward and backward).
        model: a base model. A swapped one runs its scheme's part in the layer, with `Scheme.prepare` called before.
        length: number of tokens.
        settings: batch and seed.
        mask: see `model_work`.
    """
    architecture = architecture_of(model.config)
    facts = architecture.facts(core_of(model))
    generator = torch.Generator().manual_seed(settings.seed)
    q, k, v = (
        torch.randn(settings.batch, length, heads, facts.head_dim, generator=generator)
        .to(model.device, model.dtype)
        .transpose(1, 2)
        for heads in (facts.num_heads, facts.num_key_value_heads, facts.num_key_value_heads)
    )
    _, module = next(architecture.attention_modules(core_of(model)))
    forward = _swapped_attention if hasattr(model, "pos_scheme") and mask is None else _stock_attention
    trains = mode == "attention-training"
    gradient = torch.randn(q.shape, generator=generator).to(q).transpose(1, 2)
    leaves = [q, k, v]
    width = model.get_input_embeddings().embedding_dim
    hidden = torch.randn(settings.batch, length, width, generator=generator).to(model.device, model.dtype)

    def call() -> None:
        with torch.set_grad_enabled(trains):
            context = forward(model, module, leaves, hidden, mask)
            if trains:
                context.backward(gradient)
        for tensor in (*leaves, *model.parameters()):
            tensor.grad = None

    if trains:
        leaves = [x.requires_grad_() for x in leaves]
    return Work(call, [q, k, v, *([gradient] if trains else [])])


def _stock_attention(model: Any, module: Any, qkv: Sequence[Tensor], _: Tensor, mask: MakeMask | None) -> Tensor:
    ready = None if mask is None else mask(qkv[0].shape[2], qkv[1].shape[2])
    function = stock_function(module, model.config._attn_implementation, architecture_of(model.config))
    output: Tensor = function(module, *qkv, ready, scaling=module.scaling, dropout=0.0)[0]
    return output


def _swapped_attention(model: Any, module: Any, qkv: Sequence[Tensor], hidden: Tensor, mask: MakeMask | None) -> Tensor:
    length = qkv[0].shape[2]
    steps = torch.arange(length, device=model.device).unsqueeze(0)
    positions = Positions(steps, steps, 0, architecture_of(model.config).is_causal(model.config))
    backend = model.config._attn_implementation
    scheme = core_of(model).pos_scheme.part(module.pos_part)
    context = ForwardContext(positions, scheme.prepare(positions), backend=backend, scheme=scheme)
    given = {"scaling": module.scaling, "dropout": 0.0}
    if not module.pos_scheme.enters_attention:
        return _stock_attention(model, module, qkv, hidden, mask)
    q, k, v = qkv
    call = LayerCall(module, module.pos_scheme, context)
    call.hidden_states = hidden
    return call.attend(q, k, v, None, (), given)[0]

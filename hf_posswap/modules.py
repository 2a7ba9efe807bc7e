"""The modules of a swapped model: mixins that become the class of stock modules.

No Hugging Face forward is copied: the base model's forward prepares positions and calls the stock one, and each
self-attention module joins projection, scheme, cache and attention through the parts its architecture names.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hf_posswap.architectures.base import Architecture
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.attention import attend
from hf_posswap.attention.dispatch import fold_for_flash
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.inputs import cache_among, check_positions, document_mask, positions_of
from hf_posswap.offloading import in_memory, is_offloaded
from hf_posswap.positions import Positions
from hf_posswap.schemes.base import PartialLayer, Scheme, SchemeLayer

CONTEXT = "pos_context"
"""Keyword that carries the `ForwardContext` from the base model to the attention modules."""


class Ramp(NamedTuple):
    """How far a model has come from its old mechanism to the scheme, see `hf_posswap.ramp`.

    Attributes:
        share: strength of the scheme, 0…1, 0-dim float32 on the CPU: a tensor, so that a compiled model takes any.
        native: what turned q and k in the stock layers, as a scheme; None if nothing did, or if it stays.
        layer: the layer of `native`, one for all as it has no parameters.
    """

    share: Tensor
    native: Scheme | None = None
    layer: SchemeLayer | None = None


class LayerRamp(NamedTuple):
    """What a ramp hands to every layer, so that a layer that is computed again in the backward pass has the same share.

    Attributes:
        share: strength of the scheme.
        native: the old mechanism in a layer, at strength 1 − share.
        prepared: what its scheme prepared.
    """

    share: Tensor
    native: PartialLayer | None = None
    prepared: Any = None


class ForwardContext(NamedTuple):
    """What the base model hands to every layer: positions, what the scheme prepared from them, and the ramp if any."""

    positions: Positions
    prepared: Any
    ramp: LayerRamp | None = None
    shared: dict[Any, Any] | None = None
    """What attention works out once for all layers, see `AttentionInputs.once`."""

    def stages(self, layer: SchemeLayer) -> list[tuple[SchemeLayer | PartialLayer, Any]]:
        """Return what acts in a layer, in order, each with what was prepared for it: the scheme comes last."""
        if self.ramp is None:
            return [(layer, self.prepared)]
        partial = (PartialLayer(layer, self.ramp.share), self.prepared)
        return [partial] if self.ramp.native is None else [(self.ramp.native, self.ramp.prepared), partial]


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Leave autocast for a while: it would round float32 angles and biases to half precision before they are used."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def weights_in_memory(scheme: nn.Module) -> AbstractContextManager[Any]:
    """Have a scheme's weights in memory for a while, if accelerate keeps them elsewhere."""
    return nullcontext() if torch.compiler.is_compiling() or not is_offloaded(scheme) else in_memory(scheme)


class SwappedAttention(nn.Module):
    """Mixin for a self-attention module: project → transform → cache → attention with bias → merge."""

    architecture: ClassVar[Architecture]
    stock_module: ClassVar[ModuleType]
    """The transformers module with the stock class and its attention functions."""
    pos_scheme: SchemeLayer
    pos_keep_native: bool

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        *positional: Any,
        **arguments: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Take and return what the stock module does."""
        cache = cache_among((*positional, *arguments.values()))
        arguments = {name: value for name, value in arguments.items() if value is not cache or value is None}
        with weights_in_memory(self.pos_scheme):
            return self._attend(hidden_states, attention_mask, cache, arguments)

    def _attend(
        self, hidden_states: Tensor, attention_mask: Any, cache: Any, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        module: Any = self
        context: ForwardContext = arguments.pop(CONTEXT)
        q, k, v = module.architecture.project(self, hidden_states)
        output, weights = self.attend(q, k, v, context, attention_mask, cache, arguments)
        return module.architecture.merge(self, output), weights

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        context: ForwardContext,
        attention_mask: Any = None,
        cache: Any = None,
        arguments: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what attention with the scheme makes of projected q (B, H, L, d), k and v (B, Hkv, L, d).

        Args:
            q: queries.
            k: keys of the same tokens.
            v: their values.
            context: see `ForwardContext`.
            attention_mask: as transformers made it for the backend.
            cache: the cache, which k and v enter.
            arguments: further arguments of the stock module's forward.

        Returns:
            The context (B, L, H, d), and the weights where the backend has them.
        """
        module: Any = self
        arguments = arguments or {}
        positions, architecture = context.positions, module.architecture
        stages = context.stages(module.pos_scheme)
        layer, prepared = stages[-1]
        if module.pos_keep_native:
            q, k = architecture.rotate_natively(self, q, k, arguments)
        with full_precision(q):
            for stage, ready in stages:
                q, k = stage.transform(q, k, positions, ready)
        if cache is not None:
            cache = getattr(cache, "self_attention_cache", cache)
            k, v = cache.update(k, v, module.layer_idx)
        with full_precision(q):
            for stage, ready in stages:
                q, k = stage.transform_cached(q, k, positions, ready)
            bias = layer.bias(q, positions, prepared, module.scaling)
        dropout = architecture.attention_dropout(self) if self.training else 0.0
        inputs = AttentionInputs(q, k, v, attention_mask, module.is_causal, module.scaling, dropout)
        if context.shared is not None:
            inputs = replace(inputs, shared=context.shared)
        mix = (lambda weights, start: layer.mix(weights, start, positions, prepared)) if layer.mixes_values else None
        backend = module.config._attn_implementation
        if bias is None and mix is None:
            return architecture.attend_natively(self, inputs, arguments)
        if backend.startswith("flash_attention"):
            folded = fold_for_flash(inputs, bias, mix, backend)
            output, weights = architecture.attend_natively(self, folded, arguments)
            return output[..., : v.shape[-1]], weights
        with full_precision(q):
            output, weights = attend(inputs, bias, mix, backend)
        return output.transpose(1, 2), weights


class SwappedBaseModel(nn.Module):
    """Mixin for a base model: prepares positions once per forward and calls the stock forward."""

    architecture: ClassVar[Architecture]
    stock_arguments: ClassVar[tuple[str, ...]]
    pos_scheme: Scheme
    pos_ramp: Ramp | None = None
    pos_rewritten: bool = False
    """Whether calibration rewrote weights of queries and keys since the model was loaded."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take and return what the stock base model does."""
        arguments = dict(zip(self.stock_arguments, args, strict=False)) | kwargs
        leading = _flatten_choices(arguments)
        with weights_in_memory(self.pos_scheme):
            prepare_arguments(self, arguments)
            outputs = super().forward(**arguments)
        if leading is not None:
            hidden = outputs[0].view(*leading, *outputs[0].shape[1:])
            outputs = (hidden, *outputs[1:]) if isinstance(outputs, tuple) else _with_hidden(outputs, hidden)
        return outputs


def _with_hidden(outputs: Any, hidden: Tensor) -> Any:
    outputs["last_hidden_state"] = hidden
    return outputs


def _flatten_choices(arguments: dict[str, Any]) -> torch.Size | None:
    """Fold the dimensions before the last of (batch, choices, length) inputs into one; return them, or None."""
    tokens = arguments.get("input_ids")
    if tokens is None or tokens.dim() < 3:
        return None
    for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        value = arguments.get(name)
        if isinstance(value, Tensor) and value.dim() == tokens.dim():
            arguments[name] = value.reshape(-1, value.shape[-1])
    return tokens.shape[:-1]


def prepare_arguments(model: Any, arguments: dict[str, Any]) -> None:
    """Add positions, the forward context and the embedded scheme to the arguments of the stock base model's forward.

    Raises:
        PositionError: a position past the scheme's longest one.
    """
    scheme: Scheme = model.pos_scheme
    architecture: Architecture = model.architecture
    tokens, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    given = tokens if tokens is not None else embeds
    if given is None:
        return  # the stock forward says what is missing
    batch, length = given.shape[:2]
    causal = architecture.is_causal(model.config)
    positions = positions_of(arguments, length, given.device, causal)
    limit = longest_position_of(model)
    check_positions(positions, limit, scheme.name, ramped=limit != scheme.longest_position() and _reads_retired(model))
    mask = document_mask(model, arguments, batch, length, causal)
    if mask is not None:
        arguments["attention_mask"] = mask
    arguments["position_ids"] = positions.query
    architecture.complete_inputs(arguments, batch, length, given.device)
    with full_precision(given):
        added, context = _prepared(model, positions)
    if added is not None:
        embeds = model.get_input_embeddings()(tokens) if embeds is None else embeds
        arguments["inputs_embeds"] = embeds + added.to(embeds.dtype)
        arguments["input_ids"] = None
    arguments[CONTEXT] = context


def _prepared(model: Any, positions: Positions) -> tuple[Tensor | None, ForwardContext]:
    """Return what the scheme adds to the embeddings, and the forward context; in a ramp, at its share."""
    scheme: Scheme = model.pos_scheme
    added = scheme.embed(positions)
    if model.pos_ramp is None:
        return added, ForwardContext(positions, scheme.prepare(positions), shared={})
    share, native, layer = model.pos_ramp
    ramp = LayerRamp(share)
    if native is not None:
        ramp = LayerRamp(share, PartialLayer(layer, 1 - share), native.prepare_at(positions, 1 - share))
    context = ForwardContext(positions, scheme.prepare_at(positions, share), ramp, {})
    return None if added is None else added * share, context


def longest_position_of(base: Any) -> int | None:
    """Return how many positions a swapped base model can represent, or None if there is no limit."""
    limits = [base.pos_scheme.longest_position()]
    table = base.architecture.position_table(base)
    if isinstance(table, nn.Embedding):
        limits.append(table.num_embeddings)
    if _reads_retired(base):
        limits.append(table.table.shape[0])
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _reads_retired(base: Any) -> bool:
    """Return whether a ramp lets the base model still read the position table that was swapped out."""
    return base.pos_ramp is not None and isinstance(base.architecture.position_table(base), RetiredTable)

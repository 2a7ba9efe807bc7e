"""The modules of a swapped model: mixins that become the class of stock modules.

No stock forward is written anew. The base model's forward works out positions once and calls the stock one. Each
self-attention module's forward changes its arguments only: the cache becomes a view that changes new keys on their way
in, rotary angles become neutral or the scheme's own, and the layer's call travels on to the attention function.
"""

from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from hf_posswap.architectures.base import Architecture
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.attention.interface import CALL, CONTEXT, current, handed_on
from hf_posswap.common.positions import Positions
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes.base import Scheme, SchemeLayer
from hf_posswap.schemes.partial import PartialLayer
from hf_posswap.swapped.angles import Turn
from hf_posswap.swapped.cache_view import cache_among, check_whole
from hf_posswap.swapped.direction import KEYWORD, check_direction
from hf_posswap.swapped.forward_masks import check_no_future, document_mask, readable_mask
from hf_posswap.swapped.forward_positions import check_given, check_positions, positions_of, sizes_of_keys
from hf_posswap.swapped.layer_call import NOTHING, LayerCall, full_precision, in_autocast
from hf_posswap.swapped.offloading import in_memory, is_offloaded
from hf_posswap.swapped.paged import check_paged_function, has_paged_cache
from hf_posswap.swapped.replaced import ProvedForwards, check_entered, forward_name, is_replaced


class Ramp(NamedTuple):
    """How far a model has come from its old mechanism to the scheme, see `hf_posswap.ramp`.

    Attributes:
        share: strength of the scheme, 0…1, 0-dim float32 on the CPU: a tensor, so that a compiled model takes any.
        native: what turned q and k in the stock layers, as a scheme; None if nothing did, or if it stays.
        layer: the layer of `native`, if keys are cached unturned under it; it has no parameters.
    """

    share: Tensor
    native: Scheme | None = None
    layer: SchemeLayer | None = None


class LayerRamp(NamedTuple):
    """What a ramp hands to every layer, so that a layer that is computed again in the backward pass has the same share.

    Attributes:
        share: strength of the scheme.
        native: the old turns at strength 1 − share, as the old scheme prepared them; None if there are none.
        layer: turns q and k in the place of the model's own rotation, where keys are cached unturned; else None.
    """

    share: Tensor
    native: Any = None
    layer: PartialLayer | None = None


class ForwardContext(NamedTuple):
    """What the base model hands to every layer.

    Attributes:
        positions: of this forward.
        prepared: what the scheme made of them.
        ramp: None if no ramp is on.
        shared: what attention works out once for all layers, see `AttentionInputs.once`.
        scheme: prepares what a layer with keys of its own, under a sliding window, needs.
        mode: None: the scheme acts. "bare": layers leave the old mechanism out and put nothing in. "idle": they change
            nothing. The proof of a swap runs both.
        record: takes the call, q and k of each layer, the scaling, and q and k before the scheme; None: nothing does.
        sizes: for each layer of the cache, how many keys it will return and the index in the text of the first.
        backend: the attention backend that the config names.
        learns: whether `prepared` has a gradient, which goes through what all layers share.
        entered: takes the attention modules that were entered; None: nobody asks.
        autocast: False if autocast is known to be off, so that no layer has to ask.
        part: which of the scheme's parts `scheme` and `prepared` are, see `Scheme.parts`.
    """

    positions: Positions
    prepared: Any
    ramp: LayerRamp | None = None
    shared: dict[Any, Any] | None = None
    scheme: Scheme | None = None
    mode: str | None = None
    record: Any = None
    sizes: dict[int, tuple[int, int]] | None = None
    backend: str = "sdpa"
    learns: bool = False
    entered: set[Any] | None = None
    autocast: bool = True
    part: int = 0

    def prepared_for(self, positions: Positions) -> Any:
        """Return what the scheme makes of positions; in a ramp, at its share."""
        assert self.scheme is not None
        return (
            self.scheme.prepare(positions) if self.ramp is None else self.scheme.prepare_at(positions, self.ramp.share)
        )

    def of_part(self, number: int) -> "ForwardContext":
        """Return the context for layers in which one of the scheme's parts acts."""
        whole = self.scheme
        if whole is None or (part := whole.part(number)) is whole:
            return self
        prepared = self.prepared if self.prepared is None else whole.prepared_part(self.prepared, number)
        return self._replace(scheme=part, part=number, prepared=prepared)

    @property
    def acts_everywhere(self) -> bool:
        """Whether layers whose scheme leaves attention alone come through it all the same."""
        return self.record is not None or (self.ramp is not None and self.ramp.layer is not None)

    @property
    def bare(self) -> bool:
        """Whether layers leave the old mechanism out and put nothing in."""
        return self.mode == "bare"

    @property
    def idle(self) -> bool:
        """Whether layers change nothing."""
        return self.mode == "idle"

    def stages(self, layer: SchemeLayer) -> list[tuple[SchemeLayer | PartialLayer, Any]]:
        """Return what acts in a layer with what was prepared for it: the scheme, in a ramp at its share, or nothing."""
        if self.mode is not None:
            return []
        if self.ramp is None:
            return [(layer, self.prepared)]
        partial = (PartialLayer(layer, self.ramp.share), self.prepared)
        return [partial] if self.ramp.layer is None else [(self.ramp.layer, self.ramp.native), partial]


def weights_in_memory(scheme: nn.Module) -> AbstractContextManager[Any]:
    """Have a scheme's weights in memory for a while, if accelerate keeps them elsewhere."""
    if torch.compiler.is_compiling() or not (scheme._parameters or scheme._modules) or not is_offloaded(scheme):
        return NOTHING
    return in_memory(scheme)


def handing_on(value: Any) -> AbstractContextManager[Any]:
    """Let modules find their context without a keyword; graphs that are traced hand keywords on."""
    return NOTHING if torch.compiler.is_compiling() else current(value)


PLAIN = frozenset({type(None), bool, int, float, str, dict})
"""Types of arguments that are neither a cache nor angles; of tensors, complex ones are angles."""


class SwappedAttention(nn.Module):
    """Mixin for a self-attention module: adds to the arguments of the stock forward and calls it."""

    stock_class: ClassVar[type[nn.Module]]
    pos_scheme: SchemeLayer
    pos_part: int = 0
    """Which of the parts of the base model's scheme acts in this layer, see `Scheme.parts`."""
    pos_family: Architecture
    pos_turn: Turn | None = None
    """What becomes of the rotary angles among the arguments; None: they stay."""

    def pos_backend(self, context: ForwardContext, arguments: dict[str, Any]) -> str:
        """Return the attention backend that the user chose."""
        return context.backend

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take and return what the stock module does."""
        context = handed_on(kwargs)
        if not isinstance(context, ForwardContext):
            raise UnsupportedError(
                f"{type(self).__name__} was called without {CONTEXT!r}: call the whole model, or its base model. "
                "If you did, this release of transformers calls its attention in a way that hf_posswap does not know."
            )
        if context.entered is not None:
            context.entered.add(self)
        context, scheme = context.of_part(self.pos_part), self.pos_scheme
        call = LayerCall(self, scheme, context) if scheme.enters_attention or context.acts_everywhere else None
        given = [self._given(value, call, context) for value in args]
        for name, value in kwargs.items():
            kwargs[name] = self._given(value, call, context)
        if call is None:
            return super().forward(*given, **kwargs)
        kwargs[CONTEXT] = call
        if torch.compiler.is_compiling():
            return super().forward(*given, **kwargs)
        vars(self)[CALL] = call  # for families whose modules hand no keywords on to their attention function
        try:
            with weights_in_memory(scheme):
                outputs = super().forward(*given, **kwargs)
        finally:
            vars(self).pop(CALL, None)
        if not (call.attended or context.mode is not None or context.record is not None):
            raise UnsupportedError(
                f"{self.stock_class.__name__} did not come to its attention function, so {_named(context.scheme)} "
                f"did not act. Its forward is {forward_name(self.stock_class)}: another tool may have replaced it "
                "after the swap. Swap again, swap(model, scheme, replace=True), to have it checked."
            )
        return outputs

    def _given(self, value: Any, call: LayerCall | None, context: ForwardContext) -> Any:
        """Return what the stock forward is given for an argument: other angles, or a view of the cache."""
        if type(value) in PLAIN or (type(value) is Tensor and not value.is_complex()):
            return value
        if isinstance(value, Cache):
            return value if call is None else call.cache_for(value)
        return value if self.pos_turn is None else self.pos_turn(value, context)


class SwappedBaseModel(nn.Module):
    """Mixin for the module that reads tokens: works out positions once per forward and calls the stock forward."""

    architecture: ClassVar[Architecture]
    stock_arguments: ClassVar[tuple[str, ...]]
    pos_scheme: Scheme
    pos_ramp: Ramp | None = None
    pos_mode: str | None = None
    """See `ForwardContext.mode`."""
    pos_record: Any = None
    """See `ForwardContext.record`."""
    pos_layers: tuple[nn.Module, ...] = ()
    """The attention modules that the swap concerns."""
    pos_forwards: ProvedForwards
    pos_rewritten: bool = False
    """Whether calibration rewrote weights of queries and keys since the model was loaded."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take and return what the stock base model does."""
        arguments = dict(zip(self.stock_arguments, args, strict=False)) | kwargs
        leading = _flatten_choices(arguments)
        with weights_in_memory(self.pos_scheme):
            prepare_arguments(self, arguments)
        self.pos_forwards.check(self.pos_scheme.name)
        replaced = [] if torch.compiler.is_compiling() else [m for m in self.pos_layers if is_replaced(m)]
        if replaced and CONTEXT in arguments:
            arguments[CONTEXT] = arguments[CONTEXT]._replace(entered=set())
        with handing_on(arguments.get(CONTEXT)):
            outputs = super().forward(**arguments)
        if replaced and CONTEXT in arguments:
            check_entered(replaced, arguments[CONTEXT].entered, self.pos_scheme.name)
        table = self.architecture.position_table(self)
        if isinstance(table, RetiredTable):
            table.add(None)
        if leading is not None:
            hidden = outputs[0].view(*leading, *outputs[0].shape[1:])
            outputs = (hidden, *outputs[1:]) if isinstance(outputs, tuple) else _with_hidden(outputs, hidden)
        return outputs


def _named(scheme: Scheme | None) -> str:
    return "the scheme" if scheme is None else f"scheme {scheme.name!r}"


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
        PositionError: positions of another kind or shape than the tokens', one past the scheme's longest, or a mask
            that does not fit.
        UnsupportedError: attention is to be causal and was bidirectional at the swap, or the other way round.
        BackendError: an attention function for a paged cache, and there is none.
    """
    scheme: Scheme = model.pos_scheme
    tokens, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    given = tokens if tokens is not None else embeds
    if given is None:
        return  # the stock forward says what is missing
    causal = scheme.facts.causal
    backend = str(model.config._attn_implementation)
    check_paged_function(backend, arguments)
    said = arguments.get(KEYWORD)
    # Continuous batching says is_causal=False beside a mask of its own that is causal.
    check_direction(model, None if said is None or has_paged_cache(arguments) else said)
    batch, length = given.shape[:2]
    check_given(arguments, batch, length)
    if arguments.get("attention_mask") is not None:
        dtype = embeds.dtype if embeds is not None else model.get_input_embeddings().weight.dtype
        arguments["attention_mask"] = readable_mask(arguments["attention_mask"], backend, dtype)
    cache = cache_among(arguments.values())
    sizes = sizes_of_keys(cache, length)
    check_whole(cache, sizes, length)
    known = arguments
    if given.is_meta:  # neither has values there: only shapes count, and a plain text has the same ones
        known = {name: value for name, value in arguments.items() if name not in ("attention_mask", "position_ids")}
    positions = positions_of(known, cache, length, given.device, causal, sizes)
    mask = known.get("attention_mask")
    if causal and mask is not None and any(module.pos_scheme.adds_bias for module in model.pos_layers):
        check_no_future(mask, positions.offset, sizes, scheme.name)
    if model.pos_mode is None and not given.is_meta:
        limit = longest_position_of(model)
        ramped = limit != scheme.longest_position() and _reads_retired(model)
        check_positions(positions, limit, scheme.name, ramped=ramped)
    documents = document_mask(model, known, cache, batch, length, causal)
    if documents is not None:
        arguments["attention_mask"] = documents
    if _takes_positions(model) and "position_ids" in model.stock_arguments:
        arguments["position_ids"] = positions.query
    _complete_token_types(model, arguments, batch, length, given.device)
    autocast = in_autocast(given)
    with full_precision(given, autocast):
        added, context = _prepared(model, positions)
    _embed(model, arguments, added)
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in scheme.parameters())
    arguments[CONTEXT] = context._replace(sizes=sizes, backend=backend, learns=learns, autocast=autocast)


def _embed(model: Any, arguments: dict[str, Any], added: Tensor | None) -> None:
    """Let what the scheme embeds (B|1, L, D), or nothing, enter at the old table or at the embeddings."""
    table = model.architecture.position_table(model)
    if isinstance(table, RetiredTable):
        table.add(added)
    elif added is not None:
        embeds = arguments.get("inputs_embeds")
        embeds = model.get_input_embeddings()(arguments["input_ids"]) if embeds is None else embeds
        arguments["inputs_embeds"] = embeds + added.to(embeds.dtype)
        arguments["input_ids"] = None


def _takes_positions(model: Any) -> bool:
    """Return whether positions that count from 0 can be handed to the stock forward: no table starts elsewhere."""
    table = model.architecture.position_table(model)
    return not isinstance(table, nn.Embedding) or model.architecture.first_row(model) == 0


def _complete_token_types(model: Any, arguments: dict[str, Any], batch: int, length: int, device: Any) -> None:
    """Give token types of zero where the stock model would gather them from a buffer that ends at the old limit."""
    name = "token_type_ids"
    if name in model.stock_arguments and arguments.get(name) is None and model.architecture.gathers_token_types(model):
        arguments[name] = torch.zeros(batch, length, dtype=torch.long, device=device)


def _prepared(model: Any, positions: Positions) -> tuple[Tensor | None, ForwardContext]:
    """Return what the scheme adds to the embeddings, and the forward context; in a ramp, at its share."""
    scheme: Scheme = model.pos_scheme
    if model.pos_mode is not None:
        return None, ForwardContext(positions, None, None, {}, scheme, model.pos_mode, model.pos_record)
    added = scheme.embed(positions)
    if model.pos_ramp is None:
        return added, ForwardContext(positions, scheme.prepare(positions), None, {}, scheme, None, model.pos_record)
    share, native, layer = model.pos_ramp
    fading = None if layer is None else PartialLayer(layer, 1 - share)
    ramp = LayerRamp(share, None if native is None else native.prepare_at(positions, 1 - share), fading)
    context = ForwardContext(positions, scheme.prepare_at(positions, share), ramp, {}, scheme)
    return None if added is None else added * share, context


def longest_position_of(base: Any) -> int | None:
    """Return how many positions a swapped base model can represent, or None if there is no limit."""
    limits = [base.pos_scheme.longest_position()]
    table = base.architecture.position_table(base)
    if isinstance(table, nn.Embedding):
        limits.append(table.num_embeddings - base.architecture.first_row(base))
    if _reads_retired(base):
        limits.append(table.usable_rows().shape[0])
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _reads_retired(base: Any) -> bool:
    """Return whether a ramp lets the base model still read the position table that was swapped out."""
    return base.pos_ramp is not None and isinstance(base.architecture.position_table(base), RetiredTable)

"""The modules of a swapped model: mixins that are combined with the classes of stock modules.

The mixins do not reimplement a stock forward. The forward of the base model computes positions once and calls the stock
forward. The forward of each self-attention module only changes the arguments: it replaces the cache with a view that
transforms new keys before they are stored, it replaces rotary angles with neutral ones or with those of the scheme, and
it passes a `LayerCall` to the attention function.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

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
from hf_posswap.swapped.angles import NeutralAngles, Turn, computed
from hf_posswap.swapped.cache_view import cache_among, check_whole
from hf_posswap.swapped.context import ForwardContext, LayerRamp, Ramp
from hf_posswap.swapped.direction import KEYWORD, check_direction
from hf_posswap.swapped.forward_masks import check_no_future, document_mask, readable_mask
from hf_posswap.swapped.forward_positions import check_given, check_positions, positions_of, sizes_of_keys
from hf_posswap.swapped.layer_call import NOTHING, LayerCall, full_precision, in_autocast
from hf_posswap.swapped.offloading import in_memory, is_offloaded
from hf_posswap.swapped.paged import check_paged_function, has_paged_cache
from hf_posswap.swapped.replaced import ProvedForwards, check_entered, forward_name, is_replaced
from hf_posswap.swapped.token_state import hidden_states_among


def weights_in_memory(scheme: nn.Module) -> AbstractContextManager[Any]:
    """Load a scheme's weights into memory within a `with` block, if accelerate has offloaded them."""
    if (
        not (scheme._parameters or scheme._buffers or scheme._modules)
        or torch.compiler.is_compiling()
        or not is_offloaded(scheme)
    ):
        return NOTHING
    return in_memory(scheme)


def handing_on(value: Any) -> AbstractContextManager[Any]:
    """Make the context available to modules that get no keywords, within a `with` block.

    While a graph is traced this does nothing; modules then get the context as a keyword.
    """
    return NOTHING if torch.compiler.is_compiling() else current(value)


PLAIN = frozenset({type(None), bool, int, float, str, dict})
"""Types of arguments that are neither a cache nor rotary angles. A tensor holds angles only if it is complex."""
PLAIN_OR_NEUTRAL = PLAIN | {NeutralAngles}


class SwappedAttention(nn.Module):
    """Mixin for a self-attention module: changes the arguments of the stock forward and calls it."""

    stock_class: ClassVar[type[nn.Module]]
    pos_scheme: SchemeLayer
    pos_part: int = 0
    """Number of the part of the base model's scheme that acts in this layer, see `Scheme.parts`."""
    pos_family: Architecture
    pos_turn: Turn | None = None
    """Replaces rotary angles in the arguments; None: angles stay unchanged."""

    def pos_backend(self, context: ForwardContext, arguments: dict[str, Any]) -> str:
        """Return the attention backend that the user chose."""
        return context.backend

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock module; arguments and outputs are those of the stock module."""
        context = handed_on(kwargs)
        if not isinstance(context, ForwardContext):
            raise UnsupportedError(
                f"{type(self).__name__} was called without {CONTEXT!r}: call the whole model, or its base model. "
                "If you did, this release of transformers calls its attention in a way that hf_posswap does not know."
            )
        if context.entered is not None:
            context.entered.add(self)
        scheme = self.pos_scheme
        if context.scheme is not None and context.scheme.divided:
            context = context.of_part(self.pos_part)
        call = LayerCall(self, scheme, context) if scheme.enters_attention or context.acts_everywhere else None
        if call is not None and scheme.state_size:
            call.hidden_states = hidden_states_among((*args, *kwargs.values()))
        # Most arguments stay as they are. To test for it here takes less time than a call for each of them.
        turn = self.pos_turn
        plain = PLAIN_OR_NEUTRAL if context.ramp is None and (turn is None or not turn.own) else PLAIN
        given = [self._given(value, call, context) for value in args]
        for name, value in kwargs.items():
            kind = type(value)
            if kind not in plain and (kind is not Tensor or value.is_complex()):
                kwargs[name] = self._given(value, call, context)
        if call is None:
            return super().forward(*given, **kwargs)
        kwargs[CONTEXT] = call
        if torch.compiler.is_compiling():
            return super().forward(*given, **kwargs)
        known = vars(self)
        known[CALL] = call  # for families whose modules pass no keywords to their attention function
        try:
            with weights_in_memory(scheme):
                outputs = super().forward(*given, **kwargs)
        finally:
            known[CALL] = None  # not deleted: Python finds attributes faster if their names stay
        if not (call.attended or context.mode is not None or context.record is not None):
            raise UnsupportedError(
                f"{self.stock_class.__name__} did not come to its attention function, so {context.named} "
                f"did not act. Its forward is {forward_name(self.stock_class)}: another tool may have replaced it "
                "after the swap. Swap again, swap(model, scheme, replace=True), to have it checked."
            )
        return outputs

    def _given(self, value: Any, call: LayerCall | None, context: ForwardContext) -> Any:
        """Return the value that replaces an argument of the stock forward: other angles, or a view of the cache."""
        if type(value) in PLAIN or (type(value) is Tensor and not value.is_complex()):
            return value
        if isinstance(value, Cache):
            return value if call is None else call.cache_for(value)
        return value if self.pos_turn is None else self.pos_turn(value, context)


class SwappedBaseModel(nn.Module):
    """Mixin for the module that reads tokens: computes positions once per forward and calls the stock forward."""

    architecture: ClassVar[Architecture]
    stock_arguments: ClassVar[tuple[str, ...]]
    pos_scheme: Scheme
    pos_ramp: Ramp | None = None
    pos_mode: str | None = None
    """See `ForwardContext.mode`."""
    pos_record: Any = None
    """See `ForwardContext.record`."""
    pos_layers: tuple[nn.Module, ...] = ()
    """The attention modules that the swap changed."""
    pos_prepares: bool = True
    """Whether any layer reads what the scheme prepares."""
    pos_forwards: ProvedForwards
    pos_fitted: bool = False
    """Whether it is known that no layer needs calibration before it can run, see `check_fitted`."""
    pos_fitting: bool = False
    """Whether layers that need calibration run nevertheless, see `unfitted_too`."""
    pos_rewritten: bool = False
    """Whether calibration rewrote weights of queries and keys since the model was loaded."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock base model; arguments and outputs are those of the stock base model."""
        arguments = dict(zip(self.stock_arguments, args, strict=False)) | kwargs
        leading = _flatten_choices(arguments)
        with weights_in_memory(self.pos_scheme):
            prepare_arguments(self, arguments)
        self.pos_forwards.check(self.pos_scheme.name)
        replaced = [] if torch.compiler.is_compiling() else [m for m in self.pos_layers if is_replaced(m)]
        if replaced and CONTEXT in arguments:
            arguments[CONTEXT] = arguments[CONTEXT]._replace(entered=set())
        if self.pos_mode is None:
            outputs = self._run_stock(arguments)
        else:
            with computed(self):
                outputs = self._run_stock(arguments)
        if replaced and CONTEXT in arguments:
            check_entered(replaced, arguments[CONTEXT].entered, self.pos_scheme.name)
        table = self.architecture.position_table(self)
        if isinstance(table, RetiredTable):
            table.add(None)
        if leading is not None:
            hidden = outputs[0].view(*leading, *outputs[0].shape[1:])
            outputs = (hidden, *outputs[1:]) if isinstance(outputs, tuple) else _with_hidden(outputs, hidden)
        return outputs

    def _run_stock(self, arguments: dict[str, Any]) -> Any:
        with handing_on(arguments.get(CONTEXT)):
            return super().forward(**arguments)


def _with_hidden(outputs: Any, hidden: Tensor) -> Any:
    outputs["last_hidden_state"] = hidden
    return outputs


def _flatten_choices(arguments: dict[str, Any]) -> torch.Size | None:
    """Flatten inputs (batch, choices, length) to (batch·choices, length), in place.

    Returns:
        The sizes of all dimensions before the last one; None if inputs have two dimensions.
    """
    tokens = arguments.get("input_ids")
    if tokens is None or tokens.dim() < 3:
        return None
    for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        value = arguments.get(name)
        if isinstance(value, Tensor) and value.dim() == tokens.dim():
            arguments[name] = value.reshape(-1, value.shape[-1])
    return tokens.shape[:-1]


def prepare_arguments(model: Any, arguments: dict[str, Any]) -> None:
    """Add positions, the forward context and the scheme's embeddings to the stock base model's arguments, in place.

    Raises:
        PositionError: positions are not integers or do not have the shape of the tokens, a position is beyond the
            scheme's longest, or the mask does not fit.
        UnsupportedError: attention is called as causal but was bidirectional at the swap, or the reverse.
        UnsupportedError: the scheme needs calibration first.
        BackendError: the attention function needs a paged cache, but there is none.
    """
    scheme: Scheme = model.pos_scheme
    tokens, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    given = tokens if tokens is not None else embeds
    if given is None:
        return  # the stock forward raises the error
    if not (model.pos_fitted or model.pos_fitting or given.is_meta or model.pos_mode is not None):
        check_fitted(model)
    causal = scheme.facts.causal
    backend = str(model.config._attn_implementation)
    check_paged_function(backend, arguments)
    said = arguments.get(KEYWORD)
    # Continuous batching passes is_causal=False together with its own causal mask.
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
    if given.is_meta:  # a mask or positions have no values on the meta device, and shapes do not depend on them
        known = {name: value for name, value in arguments.items() if name not in ("attention_mask", "position_ids")}
    positions = positions_of(known, cache, length, given.device, causal, sizes)
    mask = known.get("attention_mask")
    if causal and mask is not None and any(module.pos_scheme.adds_bias for module in model.pos_layers):
        check_no_future(mask, positions.offset, sizes, scheme.name)
    if model.pos_mode is None and not given.is_meta:
        limit = longest_position_of(model)
        ramped = limit != scheme.longest_position() and _reads_retired(model)
        check_positions(positions, limit, scheme.name, ramped=ramped)
    documents = document_mask(model, known, cache, positions, batch)
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


def is_unfitted(core: Any) -> bool:
    """Return whether a swapped core cannot run before calibration; False on the meta device, where this is unknown."""
    found = [module.pos_scheme.unfitted() for module in core.pos_layers]
    return any(bool(layer) for layer in found if layer is not None and not layer.is_meta)


def check_fitted(core: Any) -> None:
    """Refuse a forward before calibration, and remember if none is needed: to know reads from the device.

    Raises:
        UnsupportedError: a layer needs calibration. A traced graph raises torch's RuntimeError instead.
    """
    waiting = [module.pos_scheme for module in core.pos_layers if module.pos_scheme.unfitted() is not None]
    if torch.compiler.is_compiling():
        for layer in waiting:
            torch._assert_async(~layer.unfitted(), unfitted_words(core))
        return
    if is_unfitted(core):
        raise UnsupportedError(unfitted_words(core))
    core.pos_fitted = True


def unfitted_words(core: Any) -> str:
    """Return why a model cannot run before calibration, and what to do."""
    reason = next(module.pos_scheme.awaits for module in core.pos_layers if module.pos_scheme.awaits)
    return (
        f"scheme {core.pos_scheme.name!r} cannot run before calibration: {reason}. Calibrate first: "
        "hf_posswap.calibrate(model, batches), from_pretrained(..., pos_scheme=..., calibration=texts) or "
        "`hf-posswap calibrate`."
    )


@contextmanager
def unfitted_too(core: Any) -> Iterator[None]:
    """Run a core although its layers may need calibration, within a `with` block."""
    core.pos_fitting = True
    try:
        yield
    finally:
        del core.pos_fitting


def _embed(model: Any, arguments: dict[str, Any], added: Tensor | None) -> None:
    """Add the scheme's embeddings (B|1, L, hidden size) at the retired position table or at the token embeddings.

    Args:
        model: the base model.
        arguments: arguments of its stock forward; changed in place.
        added: the scheme's embeddings; None: the scheme adds nothing.
    """
    table = model.architecture.position_table(model)
    if isinstance(table, RetiredTable):
        table.add(added)
    elif added is not None:
        embeds = arguments.get("inputs_embeds")
        embeds = model.get_input_embeddings()(arguments["input_ids"]) if embeds is None else embeds
        arguments["inputs_embeds"] = embeds + added.to(embeds.dtype)
        arguments["input_ids"] = None


def _takes_positions(model: Any) -> bool:
    """Return whether the stock forward accepts positions from 0: its position table, if any, has no offset."""
    table = model.architecture.position_table(model)
    return not isinstance(table, nn.Embedding) or model.architecture.first_row(model) == 0


def _complete_token_types(model: Any, arguments: dict[str, Any], batch: int, length: int, device: Any) -> None:
    """Add token types of zero if the stock model would read them from a buffer that ends at its longest position."""
    name = "token_type_ids"
    if name in model.stock_arguments and arguments.get(name) is None and model.architecture.gathers_token_types(model):
        arguments[name] = torch.zeros(batch, length, dtype=torch.long, device=device)


def _prepared(model: Any, positions: Positions) -> tuple[Tensor | None, ForwardContext]:
    """Return the scheme's embeddings, or None, and the forward context; in a ramp, both at the ramp's share."""
    scheme: Scheme = model.pos_scheme
    if model.pos_mode is not None:
        return None, ForwardContext(positions, None, None, {}, scheme, model.pos_mode, model.pos_record)
    added = scheme.embed(positions)
    if model.pos_ramp is None:
        prepared = scheme.prepare(positions) if model.pos_prepares else None
        return added, ForwardContext(positions, prepared, None, {}, scheme, None, model.pos_record)
    share, native, layer = model.pos_ramp
    fading = None if layer is None else PartialLayer(layer, 1 - share)
    ramp = LayerRamp(share, None if native is None else native.prepare_at(positions, 1 - share), fading)
    context = ForwardContext(positions, scheme.prepare_at(positions, share), ramp, {}, scheme)
    return None if added is None else added * share, context


def longest_position_of(base: Any) -> int | None:
    """Return the number of positions that a swapped base model can represent, or None if there is no limit."""
    limits = [base.pos_scheme.longest_position()]
    table = base.architecture.position_table(base)
    if isinstance(table, nn.Embedding):
        limits.append(table.num_embeddings - base.architecture.first_row(base))
    if _reads_retired(base):
        limits.append(table.usable_rows().shape[0])
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _reads_retired(base: Any) -> bool:
    """Return whether a ramp is on in which the base model still reads its retired position table."""
    return base.pos_ramp is not None and isinstance(base.architecture.position_table(base), RetiredTable)

"""One call of one swapped layer: stores new keys in the cache and computes attention with the scheme."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_posswap.attention import attend
from hf_posswap.attention.dispatch import FLASH
from hf_posswap.attention.inputs import AttentionInputs, Mix
from hf_posswap.attention.sdpa import attend_to_row, known_row
from hf_posswap.attention.visibility import learns
from hf_posswap.attention.windows import SlidingWindow, check_windows, windowed
from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import PositionError, UnsupportedError
from hf_posswap.schemes.base import SchemeLayer, ScoreInputs
from hf_posswap.schemes.layer import log_n_factor
from hf_posswap.swapped.cache_view import view_of
from hf_posswap.swapped.context import ForwardContext
from hf_posswap.swapped.stock_function import check_own_function, stock_function
from hf_posswap.swapped.token_state import check_holds, with_state, without_state

NOTHING = nullcontext()


def in_autocast(x: Tensor) -> bool:
    """Return whether autocast is on for a tensor's device."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)  # torch has no autocast on the meta device


def full_precision(x: Tensor, autocast: bool = True) -> AbstractContextManager[Any]:
    """Turn autocast off within a `with` block: it would round float32 angles and biases to half precision.

    Args:
        x: a tensor on the device that computes.
        autocast: False if autocast is known to be off.
    """
    return torch.autocast(x.device.type, enabled=False) if autocast and in_autocast(x) else NOTHING


class LayerCall:
    """Applies the scheme of one layer in one forward: first to new keys, then to queries, keys and scores in attention.

    Args:
        module: the swapped attention module.
        scheme: the scheme's layer for the module.
        context: the forward's context.
    """

    __slots__ = (
        "attended", "cached_length", "context", "first", "has_cache", "hidden_states", "module", "scheme",
        "score_inputs", "stages",
    )  # fmt: skip

    def __init__(self, module: Any, scheme: SchemeLayer, context: ForwardContext) -> None:
        self.module = module
        self.scheme = scheme
        self.context = _own_context(module, context) if context.learns else context
        self.stages: list[tuple[Any, Any]] = self.context.stages(scheme)
        """The scheme layers that act in the layer, each with its prepared values."""
        self.hidden_states: Tensor | None = None
        """Input of the module (B, L, hidden size), for a scheme with a state."""
        self.score_inputs: ScoreInputs | None = None
        """What the scheme's bias depends on, for `ForwardContext.record`; None: the scheme has no bias."""
        self.cached_length: int | None = None
        """Number of keys that the cache will return; None: the keys did not pass through a cache."""
        self.first = 0
        """Index in the text of the first of these keys; above 0 if a sliding window's cache dropped earlier keys."""
        self.has_cache = False
        """Whether the layer got a cache. A layer that uses the keys of another layer gets one but stores no keys."""
        self.attended = False
        """Whether the layer called its attention function."""

    def cache_for(self, cache: Any) -> Any:
        """Record that the layer has a cache; return the cache, or a view that transforms new keys before storing them.

        Args:
            cache: the cache that the layer got.
        """
        self.has_cache = True
        for stage, _ in self.stages:
            if stage.transforms or stage.state_size:
                return view_of(cache, self.store)
        return cache

    def store(self, cache: Any, k: Tensor, layer_index: Any) -> Tensor:
        """Return new keys (B, Hkv, L, D) in the form in which the cache stores them."""
        known = (self.context.sizes or {}).get(layer_index)
        self.cached_length, self.first = known or cache.get_mask_sizes(k.shape[2], layer_index)
        with full_precision(k, self.context.autocast):
            for stage, prepared in self.stages:
                k = stage.transform_key(k, self.context.positions, prepared)
            state = self._new_state()
        if state is None:
            return k
        keys = with_state(k, state)
        check_holds(cache, layer_index, keys, self.context.named)
        return keys

    def _new_state(self) -> Tensor | None:
        """Return the scheme's values for the new tokens, float32, (B, S, L), or None if it has no state.

        Raises:
            UnsupportedError: the model's hidden states are not among the arguments of the attention module.
        """
        for stage, prepared in self.stages:
            if stage.state_size:
                hidden, scheme = self.hidden_states, self.context.scheme
                assert scheme is not None
                if hidden is None or hidden.shape[-1] != scheme.facts.hidden_size:
                    got = "none" if hidden is None else f"some of size {hidden.shape[-1]}"
                    raise UnsupportedError(
                        f"{self.context.named} reads hidden states of size {scheme.facts.hidden_size}, and "
                        f"{type(self.module).stock_class.__name__} got {got} as an argument."
                    )
                return stage.state(hidden, self.context.positions, prepared)
        return None

    def _split(self, k: Tensor, head_dim: int) -> tuple[Tensor, Tensor | None]:
        """Return keys without the channels that hold the scheme's state, and the state of all keys, or None.

        Raises:
            UnsupportedError: the keys come from another layer's cache, which does not hold this layer's state.
        """
        if self.cached_length is not None:
            return without_state(k, head_dim, self.scheme.state_size)
        if self.has_cache:
            raise UnsupportedError(
                f"{self.context.named} stores values for each token beside a layer's keys, and a layer "
                "of this model reads the keys of another layer. Leave that layer out, see option 'layers'."
            )
        with full_precision(k, self.context.autocast):
            return k, self._new_state()

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context (B, L, H, D) of attention with the scheme, and the weights if the backend returns them.

        Args:
            q: queries (B, H, Lq, D), not yet transformed by the scheme.
            k: all keys (B, Hkv, Lk, D); already transformed by the scheme if they come from the cache.
            v: values (B, Hkv, Lk, D).
            mask: the mask that transformers made for the backend.
            args: further arguments of the attention function.
            kwargs: keyword arguments of the attention function.

        Raises:
            PositionError: the number of keys differs from the expected one, or the mask has more keys.
            UnsupportedError: the stock layer adds a bias of its own to its scores.
            BackendError: the backend cannot compute the call.
        """
        self.attended = True
        state = None
        if self.scheme.state_size and self.stages:
            k, state = self._split(k, q.shape[-1])
        context = self._context_of_keys(k.shape[2])
        if isinstance(mask, Tensor) and mask.shape[-1] > k.shape[2]:
            raise PositionError(
                f"a layer attends to {k.shape[2]} keys, and its attention mask is for {mask.shape[-1]}. Layers with a "
                "sliding window need a mask of their own: give a 2D mask, or a dictionary with a mask for each kind."
            )
        if kwargs.get("position_bias") is not None and not context.idle:
            raise _other_bias(self.module)
        scaling = kwargs.get("scaling")
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        if context.autocast:
            q, k, v = _in_one_dtype(q, k, v)
        precision = full_precision(q, context.autocast)
        with precision:
            q, k, bias, mix = self._positioned(q, k, context, scaling, state)
            row = None if bias is None or mix is not None else self._known_row(q, k, bias, mask, context, kwargs)
            if row is not None:
                return attend_to_row(q, k, v, row, scaling), None
        causal = kwargs.get("is_causal")
        causal = context.positions.causal if causal is None else causal
        backend = self.module.pos_backend(context, kwargs)
        window = self.scheme.window
        if window is not None and context.mode is None:
            mask, kwargs = self._within(window, mask, q, k, context, causal, backend, kwargs)
        shared = {} if context.shared is None else context.shared
        inputs = AttentionInputs(
            q, k, v, mask, causal, scaling, kwargs.get("dropout") or 0.0, shared, kwargs.get("softcap"),
            kwargs.get("s_aux"),
        )  # fmt: skip
        natively = partial(_attend_natively, self.module, backend, args, kwargs)
        if bias is None and mix is None:
            return natively(inputs)
        self._check_function(backend)
        with precision:
            output, weights = attend(inputs, bias, mix, backend, natively)
        return output.transpose(1, 2).contiguous(), weights  # as stock functions return it

    def _known_row(
        self, q: Tensor, k: Tensor, bias: Bias, mask: Any, context: ForwardContext, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Return the row of a single query's bias if an earlier layer of the forward attended with it; otherwise None.

        While a text is decoded, all but the first layer then skip the checks and the search for a path.
        """
        shared = context.shared
        if q.shape[2] != 1 or shared is None or ("own function", type(self.module)) not in shared:
            return None
        if self.scheme.window is not None or self.module.pos_backend(context, kwargs) != "sdpa":
            return None
        if kwargs.get("dropout") or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            return None
        return known_row(shared, q, k, bias, mask)

    def _within(
        self,
        window: int,
        mask: Any,
        q: Tensor,
        k: Tensor,
        context: ForwardContext,
        causal: bool,
        backend: str,
        kwargs: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """Return the mask and the keyword arguments with which an attention function applies a sliding window."""
        check_windows(backend)
        if backend.startswith(FLASH):
            own = kwargs.get("sliding_window")
            return mask, kwargs | {"sliding_window": window if own is None else min(own, window)}

        def make() -> Any:
            return windowed(mask, SlidingWindow(window, context.positions.offset, causal), q, k.shape[2], backend)

        if context.shared is None or torch.compiler.is_compiling() or (isinstance(mask, Tensor) and learns(mask)):
            return make(), kwargs
        key = ("window", window, self.first, k.shape[2], id(mask))
        if key not in context.shared:
            context.shared[key] = (make(), mask)  # the stored mask stays alive, so that its id stays unique
        return context.shared[key][0], kwargs

    def _check_function(self, backend: str) -> None:
        """Refuse a bias if the backend's function is not that of transformers; checked once per forward.

        Raises:
            BackendError: see `check_own_function`.
        """
        key, shared = ("own function", type(self.module)), self.context.shared
        if shared is None or key not in shared:
            check_own_function(self.module, backend)
            if shared is not None:
                shared[key] = True

    def _positioned(
        self, q: Tensor, k: Tensor, context: ForwardContext, scaling: float, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Bias | None, Mix | None]:
        """Return transformed queries and keys, the scheme's bias, and the function of its value side."""
        if self.scheme.log_n_from is not None and context.mode is None:
            q = (q.float() * self._log_n_factor(context, self.scheme.log_n_from)).to(q.dtype)
        positions, stages, projected = context.positions, self.stages, (q, k)
        if context is not self.context:  # made for the keys of this layer
            stages = context.stages(self.scheme)
        transforming = [(stage, prepared) for stage, prepared in stages if stage.transforms]
        for stage, prepared in transforming:
            q = stage.transform_query(q, positions, prepared)
            k = k if self.cached_length is not None else stage.transform_key(k, positions, prepared)
        before = projected
        for stage, prepared in transforming:
            before = q, k
            q, k = stage.transform_cached(q, k, positions, prepared)
        acting, ready = stages[-1] if stages else (None, None)
        inputs = None
        if acting is not None and acting.adds_bias:
            inputs = ScoreInputs(q, k, positions, ready, scaling, before, state, self.hidden_states)
        if context.record is not None:
            self.score_inputs = inputs
            context.record(self, (q, k), scaling, projected)
        if acting is None:
            return q, k, None, None
        mix = partial(_mixed, acting, positions, ready) if acting.mixes_values else None
        return q, k, None if inputs is None else acting.bias(inputs), mix

    def _log_n_factor(self, context: ForwardContext, train_length: int) -> Tensor:
        """Return `log_n_factor`, computed once per forward; in a ramp, to the power of the scheme's share."""
        if context.ramp is not None:
            return log_n_factor(context.positions, train_length) ** context.ramp.share
        if context.shared is None or torch.compiler.is_compiling():
            return log_n_factor(context.positions, train_length)
        key = ("log n", train_length)
        if key not in context.shared:
            context.shared[key] = log_n_factor(context.positions, train_length)
        found: Tensor = context.shared[key]
        return found

    def _context_of_keys(self, key_length: int) -> ForwardContext:
        """Return the forward's context for this layer's keys: under a sliding window, the last keys of the text.

        Raises:
            PositionError: the number of keys differs from the expected one, so their positions are unknown.
        """
        context = self.context
        whole = context.positions.key_length
        if self.cached_length is None and self.has_cache:
            self.cached_length, self.first = (whole, 0) if key_length == whole else self._announced(key_length)
        expected = context.positions.query_length if self.cached_length is None else self.cached_length
        if key_length != expected:
            raise PositionError(
                f"a layer attends to {key_length} keys where {expected} were expected, so their positions are unknown: "
                "keys were added or evicted by something else. Run without a cache, or with one of transformers' own."
            )
        if self.first == 0 and key_length == whole:
            return context
        if context.shared is None or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self._made_for_keys(key_length)
        key = ("keys", context.part, self.first, key_length)
        if key not in context.shared:
            context.shared[key] = self._made_for_keys(key_length)
        return context.shared[key]

    def _announced(self, key_length: int) -> tuple[int, int]:
        """Return the expected number of keys of a layer with `key_length` keys, and the first key's index in the text.

        The values are those of any layer of the cache with this number of keys; if there is none, those of the whole
        text. The index of this layer in the cache is unknown, because its keys did not pass through `store`.
        """
        sizes = self.context.sizes or {}
        whole = self.context.positions.key_length
        return next((size for size in sizes.values() if size[0] == key_length), (whole, 0))

    def _made_for_keys(self, key_length: int) -> ForwardContext:
        context = self.context
        positions: Positions = context.positions.of_keys(self.first, key_length)
        if context.mode is not None:
            return context._replace(positions=positions)
        if context.ramp is not None and context.ramp.layer is not None:
            raise PositionError("a ramp from a mechanism that looks at the text's length does not run under a window.")
        return context._replace(positions=positions, prepared=context.prepared_for(positions))


def _own_context(module: Any, context: ForwardContext) -> ForwardContext:
    """Return the forward's context for a layer; a layer that is computed twice gets newly prepared values.

    A reentrant checkpoint first runs a layer without gradients, then runs it again in the backward pass, with its own
    backward pass. With shared values, each layer's backward pass would run through the same graph again.
    """
    if context.mode is not None or context.shared is None or torch.compiler.is_compiling():
        return context
    key = ("computed again", id(module))
    if not torch.is_grad_enabled():
        context.shared[key] = True
        return context
    if key not in context.shared:
        return context
    with full_precision(context.positions.query, context.autocast):
        return context._replace(prepared=context.prepared_for(context.positions))


def _mixed(layer: Any, positions: Positions, prepared: Any, weights: Tensor, start: int) -> Tensor:
    """Return the summand of a layer's value side. The arguments of a `Mix` are last, for use with `partial`."""
    added: Tensor = layer.mix(weights, start, positions, prepared)
    return added


def _attend_natively(
    module: Any, backend: str, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: AttentionInputs
) -> tuple[Tensor, Tensor | None]:
    """Run the stock attention function: context (B, L, H, D), and the weights if the backend returns them."""
    key = ("stock function", type(module), backend)
    if torch.compiler.is_compiling():
        stock = stock_function(module, backend, module.pos_family)
    elif key in inputs.shared:
        stock = inputs.shared[key]
    else:
        stock = inputs.shared[key] = stock_function(module, backend, module.pos_family)
    if stock is None:
        context, weights = attend(inputs, None, None, backend)
        return context.transpose(1, 2).contiguous(), weights
    given = kwargs | {"scaling": inputs.scaling}
    output: tuple[Tensor, Tensor | None] = stock(module, inputs.q, inputs.k, inputs.v, inputs.mask, *args, **given)
    return output


def _other_bias(module: Any) -> UnsupportedError:
    """Return the error for a stock layer that adds a bias of its own to its scores."""
    return UnsupportedError(
        f"{type(module).stock_class.__name__} adds a bias of its own to its scores, which hf_posswap does not know "
        "how to take out."
    )


def _in_one_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v in autocast's dtype if it is on, because float32 angles make q and k, but not v, float32."""
    if q.dtype == k.dtype == v.dtype or not in_autocast(q):
        return q, k, v
    dtype = torch.get_autocast_dtype(q.device.type)
    return q.to(dtype), k.to(dtype), v.to(dtype)

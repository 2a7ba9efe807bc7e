"""Queries and keys of one attention module, recorded by an attention function that replaces the module's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from hf_posswap.swapped.config_view import show_config, show_view
from hf_posswap.swapped.token_state import hidden_states_among

RECORDER = "posswap_record"
"""Name of the attention function that records q and k."""


class Recorded(Exception):
    """Carries the arguments of an attention function out of the forward.

    Args:
        q: queries (B, H, L, D).
        k: keys (B, Hkv, L, D).
        scaling: factor on q·k.
        projected: queries and keys before the scheme is applied, in a swapped layer.
        bias: bias that a stock layer adds to its scaled scores, broadcastable to (B, H, L, L), or None.
        mask: the mask that the stock layer got, see `AttentionInputs.mask`; not recorded in a swapped layer.
        softcap: see `AttentionInputs.softcap`; not recorded in a swapped layer.
        sinks: see `AttentionInputs.sinks`; not recorded in a swapped layer.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        scaling: float,
        projected: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
        mask: Any = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        super().__init__("an attention function was reached")
        self.q, self.k, self.scaling, self.projected, self.bias = q, k, scaling, projected, bias
        self.mask, self.softcap, self.sinks = mask, softcap, sinks
        self.hidden_states: Tensor | None = None
        """Input of the attention module (B, L, hidden size), if the caller knows it."""


def _record(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kwargs: Any) -> Any:
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    more = {"mask": mask, "softcap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux")}
    raise Recorded(query, key, scaling, (query, key), **more)


AttentionInterface.register(RECORDER, _record)


@contextmanager
def seen_through(module: Any, implementation: str) -> Iterator[None]:
    """Replace a module's attention function by another one within a `with` block."""
    before = dict(vars(module))
    show_view(module, implementation)
    try:
        yield
    finally:
        show_config(module)
        for name, value in before.items():
            if vars(module).get(name) is not value:
                setattr(module, name, value)


@torch.no_grad()
def queries_and_keys(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recorded | None:
    """Return the arguments that a module passes to its attention function, or None if it does not call it."""
    with seen_through(module, RECORDER):
        try:
            module(*args, **kwargs)
        except Recorded as recorded:
            recorded.hidden_states = hidden_states_among((*args, *kwargs.values()))
            return recorded
    return None


@torch.no_grad()
def scores_by_distance(module: Any, recorded: Recorded, context: Any, distances: tuple[int, ...]) -> list[float]:
    """Return the mean scaled score of the pairs at each distance, over texts and heads.

    Args:
        module: the attention module.
        recorded: its queries and keys.
        context: context of a swapped model's forward, with which the scheme is applied; None for a stock model.
        distances: distances from the query back to the key.
    """
    q, k = recorded.q, recorded.k
    bias: Any = 0.0
    if context is not None:
        context = context.of_part(module.pos_part)
        layer, positions, prepared = module.pos_scheme, context.positions, context.prepared
        inputs = layer.score_inputs(q, k, positions, prepared, recorded.scaling, recorded.hidden_states)
        q, k, made = inputs.q, inputs.k, layer.bias(inputs)
        bias = 0.0 if made is None else made.rows(0, q.shape[2])
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q.float() * recorded.scaling) @ k.float().mT + bias
    return [float(scores.diagonal(-distance, dim1=-2, dim2=-1).mean()) for distance in distances]

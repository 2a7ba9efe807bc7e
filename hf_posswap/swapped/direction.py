"""The direction of attention, causal or bidirectional: that of the swapped scheme and that of a forward."""

from typing import Any

from hf_posswap.errors import UnsupportedError

KEYWORD = "is_causal"
"""Keyword of transformers' forwards, and attribute of its attention modules, that states the direction."""


def check_direction(core: Any, said: bool | None = None) -> None:
    """Refuse a forward whose direction of attention is not the one that the scheme was swapped in for.

    Biases, and the positions of distances in their tables, depend on the direction.

    Args:
        core: the swapped core.
        said: value of the forward's keyword; None: not given.

    Raises:
        UnsupportedError: the config, the forward's keyword, or an attention module of a causal model has the other
            direction.
    """
    scheme = core.pos_scheme
    causal = scheme.facts.causal
    beside = None
    if core.architecture.is_causal(core.config) is not causal:
        beside = "the config says otherwise now (is_causal, is_decoder)"
    elif said is not None and bool(said) is not causal:
        beside = f"the forward was given {KEYWORD}={said}"
    elif causal and any(getattr(module, KEYWORD, None) is False for module in core.pos_layers):
        # Stock sdpa would then attend in both directions without padding, and causally with padding.
        beside = f"an attention module says {KEYWORD}=False"
    if beside is not None:
        raise UnsupportedError(
            f"scheme {scheme.name!r} was swapped in for {'causal' if causal else 'bidirectional'} attention, and "
            f"{beside}. Set is_causal in the config first, then swap; swap(model, scheme, replace=True) does it again."
        )

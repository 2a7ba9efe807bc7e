"""Whether attention is causal or bidirectional: what a scheme was swapped in for, and what a forward asks for."""

from typing import Any

from hf_posswap.errors import UnsupportedError

KEYWORD = "is_causal"
"""The keyword by which transformers' forwards, and the attribute by which its attention modules, say it."""


def check_direction(core: Any, said: bool | None = None) -> None:
    """Refuse a swapped model that is to attend otherwise than its scheme was swapped in for.

    Biases, and the position of every distance in their tables, are for one of both.

    Args:
        core: the swapped core.
        said: what the forward's own keyword says; None: nothing.

    Raises:
        UnsupportedError: the config, the forward's keyword, or an attention module of a causal model says otherwise.
    """
    scheme = core.pos_scheme
    causal = scheme.facts.causal
    beside = None
    if core.architecture.is_causal(core.config) is not causal:
        beside = "the config says otherwise now (is_causal, is_decoder)"
    elif said is not None and bool(said) is not causal:
        beside = f"the forward was given {KEYWORD}={said}"
    elif causal and any(getattr(module, KEYWORD, None) is False for module in core.pos_layers):
        # Stock sdpa would then attend both ways without padding, and causally beside it.
        beside = f"an attention module says {KEYWORD}=False"
    if beside is not None:
        raise UnsupportedError(
            f"scheme {scheme.name!r} was swapped in for {'causal' if causal else 'bidirectional'} attention, and "
            f"{beside}. Set is_causal in the config first, then swap; swap(model, scheme, replace=True) does it again."
        )

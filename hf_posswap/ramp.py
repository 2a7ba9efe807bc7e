"""The ramp: a gradual change from the old positional mechanism of a swapped model to the new one, for healing.

The share, from 0 to 1, is the strength of the scheme: at 0 the model computes the outputs of the stock model, at 1
those of the swapped one, and in between every part changes continuously. The training loop sets it before each step.

- A position table that was swapped out gives (1 − share)·row + share·(the output of the module that replaced it).
- Old rotary angles are scaled by 1 − share. This is position interpolation with ever shorter steps (Chen et al.,
  2306.15595, equation 4), so scores still depend on the distance alone.
- What the scheme embeds, its angles, biases and value side are scaled by the share.

With `keep_native` the old mechanism does not change, and only the scheme is scaled.
"""

from numbers import Real
from typing import Any

import torch
from torch import nn

from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.errors import NotSwappedError, PosSwapError
from hf_posswap.schemes import scheme_class
from hf_posswap.schemes.base import Scheme
from hf_posswap.swapped.config_view import show_config, show_view
from hf_posswap.swapped.context import Ramp
from hf_posswap.swapped.modules import SwappedAttention, SwappedBaseModel


class RampError(PosSwapError):
    """A value that is no share from 0 to 1, or a model whose old mechanism cannot be faded out."""


def set_ramp(model: nn.Module, share: float | None) -> None:
    """Set the share of a swapped model: the strength of its scheme against its old positional mechanism.

    The share is not saved with the model or its config. `swap(..., replace=True)` and `restore` end the ramp. During a
    ramp a position table that was swapped out is still read, so texts must not be longer than the table. A forward uses
    one share throughout, also where gradient checkpointing computes it again. A compiled model is compiled again when a
    ramp begins or ends, but not for a new share.

    Args:
        model: a swapped model, or a wrapper around one: an adapter, a compiled or a distributed model.
        share: strength of the scheme, from 0 (the stock model) to 1 (the swapped one). None ends the ramp; without a
            ramp it has no effect.

    Raises:
        NotSwappedError: there is no swapped model in `model`.
        RampError: the share is no number from 0 to 1, or the old mechanism cannot be faded out. Nothing has
            changed after either.
    """
    base = _swapped_base(model)
    ramp = None if share is None else _ramp_at(base, _checked(share))
    _assign(base, "pos_ramp", ramp)
    _let_fade(base, ramp is not None and ramp.layer is not None)
    for module in base.modules():  # adapters have copies of the retired table
        if isinstance(module, RetiredTable):
            _assign(module, "ramp_share", None if ramp is None else ramp.share)


def ramp_share(model: nn.Module) -> float | None:
    """Return the share of a swapped model, or None without a ramp.

    Raises:
        NotSwappedError: there is no swapped model in `model`.
    """
    ramp = _swapped_base(model).pos_ramp
    return None if ramp is None else float(ramp.share)


def _swapped_base(model: nn.Module) -> Any:
    for module in model.modules():
        if isinstance(module, SwappedBaseModel):
            return module
    raise NotSwappedError(
        f"a ramp leads from the old mechanism of a swapped model to the new one, and there is no swapped model in this "
        f"{type(model).__name__}: call hf_posswap.swap(model, scheme) first."
    )


def _assign(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute; for None remove it, so that the class's None is found."""
    if value is None:
        vars(module).pop(name, None)
    else:
        setattr(module, name, value)


def _checked(share: Any) -> float:
    if not isinstance(share, bool) and isinstance(share, Real) and 0 <= float(share) <= 1:
        return float(share)
    raise RampError(
        f"the share of a ramp is {share!r}; it must be a number from 0 (the stock model) to 1 (the swapped one), or "
        "None to end the ramp."
    )


def _ramp_at(base: Any, share: float) -> Ramp:
    """Return a ramp with a share in a new tensor, so that forwards that have begun keep theirs."""
    native = _old_turns(base) if base.pos_ramp is None else base.pos_ramp.native
    layer = native.make_layer(0) if native is not None and native.keeps_raw_keys() else None
    return Ramp(torch.tensor(share, dtype=torch.float32, device="cpu"), native, layer)


def _let_fade(base: Any, fades: bool) -> None:
    """Make layers that run the stock attention function run ours while old rotations are faded in it."""
    for module in base.modules():
        if isinstance(module, SwappedAttention) and not module.pos_scheme.enters_attention:
            (show_view if fades else show_config)(module)


def _old_turns(base: Any) -> Scheme | None:
    """Return the rotation of q and k in the stock layers, as a scheme; None if there is none to fade.

    Raises:
        RampError: the old mechanism is neither a table nor a rotation that is known in all layers.
    """
    facts = base.pos_scheme.facts
    for part in base.pos_scheme.parts:
        if part.config.window is not None:
            raise RampError(
                f"scheme {part.name!r} has a sliding window of {part.config.window} tokens, which acts whole or not at "
                "all, so that a ramp cannot lead to it. Train without a ramp, or without window."
            )
    if base.pos_scheme.config.keep_native:
        return None
    rotary = base.architecture.rotary(base)
    known = facts.native in ("learned", "none") or (facts.native == "rope" and facts.native_rope is not None)
    if not known or (rotary is not None and rotary.wide_only):
        raise RampError(
            f"the old mechanism of {facts.architecture!r} ({facts.native!r}) cannot be faded out: a ramp fades "
            "position tables, and rotary angles that are the same in all layers. Train without a ramp, or swap with "
            "keep_native=True."
        )
    if facts.native_rope is None:
        return None
    native_class = scheme_class(facts.native)
    return native_class(native_class.config_class().resolve(facts), facts)

"""Rotary angles on their way into an attention module: they become neutral, or the scheme's own.

Angles arrive among the arguments of the attention module: as a pair (cos, sin), or as one complex tensor. They are
found by that form, whatever the family calls them. Neutral angles, 1 and 0, leave q and k as they are in every dtype.
A layer that gets angles and does not use them, as some layers of SmolLM3, stays as it is.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_posswap.architectures.rotary import written


def are_angles(value: Any) -> bool:
    """Return whether an argument holds rotary angles: a pair of floating tensors of one shape, or a complex one."""
    if isinstance(value, Tensor):
        return value.is_complex()
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    first, second = value
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    return first.is_floating_point() and first.shape == second.shape


class Turn(NamedTuple):
    """What a swapped layer makes of the angles that it is given: by default neutral ones.

    Attributes:
        layout: how the family writes angles, one of `LAYOUTS`; None if that is unknown.
        own: whether the scheme's own angles take the place, which the context has prepared.
        keeps: whether angles stay, but where the proof of a swap takes the old mechanism out.
    """

    layout: str | None = None
    own: bool = False
    keeps: bool = False

    def __call__(self, value: Any, context: Any) -> Any:
        """Return an argument of the attention module, other angles if it holds angles."""
        key = ("angles", self, context.part, id(value))
        known = None if context.shared is None or torch.compiler.is_compiling() else context.shared
        if known is not None and key in known:
            return known[key][0]
        if context.mode == "idle" or (self.keeps and not context.bare) or not are_angles(value):
            return value
        made = self._made(value, context)
        if known is not None:  # once for all layers that are given the same, which stays alive as long as its number
            known[key] = (made, value)
        return made

    def _made(self, value: Any, context: Any) -> Any:
        rotations = [] if context.bare else self._rotations(context)
        if not rotations:
            # Views of one number: as many angles beside the stock ones would take memory that stock does not.
            if isinstance(value, Tensor):
                return value.new_ones(()).expand_as(value)
            return value[0].new_ones(()).expand_as(value[0]), value[1].new_zeros(()).expand_as(value[1])
        assert self.layout is not None
        cos, sin = rotations[0]
        for further_cos, further_sin in rotations[1:]:  # one turn after the other
            cos, sin = cos * further_cos - sin * further_sin, sin * further_cos + cos * further_sin
        if isinstance(value, Tensor):
            return torch.complex(cos.squeeze(1), sin.squeeze(1)).to(value.dtype)
        return tuple(written(part.squeeze(1), self.layout).to(value[0].dtype) for part in (cos, sin))

    def _rotations(self, context: Any) -> list[Any]:
        """Return cos and sin of the turns that act: in a ramp the old ones in part, and the scheme's own."""
        ramp = context.ramp
        fading = [] if ramp is None or ramp.native is None or ramp.layer is not None else [ramp.native.query]
        return [*fading, context.prepared.query] if self.own else fading

"""Replaces the rotary angles in the arguments of an attention module with neutral angles, or with the scheme's.

Angles are an argument of the attention module: a pair (cos, sin), or one complex tensor. This module finds them by
that form, because the name of the argument differs by family. Neutral angles, cos 1 and sin 0, leave q and k unchanged
in every dtype. A layer that gets angles but does not use them, like some layers of SmolLM3, works unchanged.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_posswap.architectures.rotary import written


def are_angles(value: Any) -> bool:
    """Return whether an argument holds rotary angles: two floating tensors of one shape, or one complex tensor."""
    if isinstance(value, Tensor):
        return value.is_complex()
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    first, second = value
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    return first.is_floating_point() and first.shape == second.shape


class Turn(NamedTuple):
    """Replaces the angles that a swapped layer gets, by default with neutral angles.

    Attributes:
        layout: the family's layout of angles, one of `LAYOUTS`; None if it is unknown.
        own: whether the new angles are those of the scheme, which the context holds.
        keeps: whether angles stay unchanged, except in the mode "bare" of the proof.
    """

    layout: str | None = None
    own: bool = False
    keeps: bool = False

    def __call__(self, value: Any, context: Any) -> Any:
        """Return an argument of the attention module; if it holds angles, return the new angles."""
        key = ("angles", self, context.part, id(value))
        known = None if context.shared is None or torch.compiler.is_compiling() else context.shared
        if known is not None and key in known:
            return known[key][0]
        if context.mode == "idle" or (self.keeps and not context.bare) or not are_angles(value):
            return value
        made = self._made(value, context)
        if known is not None:  # layers share angles; the stored `value` stays alive, so that its id stays unique
            known[key] = (made, value)
        return made

    def _made(self, value: Any, context: Any) -> Any:
        rotations = [] if context.bare else self._rotations(context)
        if not rotations:
            # Expanded views of one number: full tensors would need memory that the stock model does not need.
            if isinstance(value, Tensor):
                return value.new_ones(()).expand_as(value)
            return value[0].new_ones(()).expand_as(value[0]), value[1].new_zeros(()).expand_as(value[1])
        assert self.layout is not None
        cos, sin = rotations[0]
        for further_cos, further_sin in rotations[1:]:  # compose the rotations: their angles add up
            cos, sin = cos * further_cos - sin * further_sin, sin * further_cos + cos * further_sin
        if isinstance(value, Tensor):
            return torch.complex(cos.squeeze(1), sin.squeeze(1)).to(value.dtype)
        return tuple(written(part.squeeze(1), self.layout).to(value[0].dtype) for part in (cos, sin))

    def _rotations(self, context: Any) -> list[Any]:
        """Return cos and sin of the rotations that act: in a ramp those of the stock scheme, and the scheme's own."""
        ramp = context.ramp
        fading = [] if ramp is None or ramp.native is None or ramp.layer is not None else [ramp.native.query]
        return [*fading, context.prepared.query] if self.own else fading

"""Replaces the rotary angles in the arguments of an attention module with neutral angles, or with the scheme's.

Angles are an argument of the attention module: a pair (cos, sin), or one complex tensor. This module finds them by
that form, because the name of the argument differs by family. Neutral angles, cos 1 and sin 0, leave q and k unchanged
in every dtype. A layer that gets angles but does not use them, like some layers of SmolLM3, works unchanged.

If every layer replaces its angles, nothing reads those of the rotary module, and it returns neutral ones at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hf_posswap.architectures.rotary import written


class NeutralAngles(NamedTuple):
    """Neutral angles, which leave q and k unchanged. Both are expanded views of one number."""

    cos: Tensor
    sin: Tensor


class SwappedRotary(nn.Module):
    """Mixin for the rotary module of a model in which every layer replaces its angles: returns neutral angles."""

    stock_class: ClassVar[type[nn.Module]]
    pos_width: int
    """Last size of cos and sin."""
    pos_computes: bool = False
    """Whether the stock angles are computed nevertheless, see `computed`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return neutral angles in the shape and dtype of the stock ones; arguments are those of the stock module."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        hidden = next((value for value in given if value.is_floating_point()), None)
        positions = next((value for value in given if not value.is_floating_point()), None)
        if self.pos_computes or hidden is None or positions is None or positions.dim() != 2:
            # The shape was found for positions (B, L). M-RoPE has (3, B, L), and angles whose shape differs by family.
            return super().forward(*args, **kwargs)
        # Expanded views: full tensors would need memory that the stock model does not need.
        shape = (*positions.shape, self.pos_width)
        return NeutralAngles(hidden.new_ones(()).expand(shape), hidden.new_zeros(()).expand(shape))


@contextmanager
def computed(base: nn.Module) -> Iterator[None]:
    """Let the rotary module of a base model compute the stock angles within a `with` block."""
    modules = [module for module in base.modules() if isinstance(module, SwappedRotary)]
    for module in modules:
        module.pos_computes = True
    try:
        yield
    finally:
        for module in modules:
            del module.pos_computes


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
        if type(value) is NeutralAngles and context.ramp is None and not self.own:
            return value
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
            if isinstance(value, Tensor):
                return value.new_ones(()).expand_as(value)
            return NeutralAngles(value[0].new_ones(()).expand_as(value[0]), value[1].new_zeros(()).expand_as(value[1]))
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

"""Kinds of bias: values that a scheme adds to the scaled scores, with the structure that makes them cheap.

A bias is a tensor of H × Lq × Lk only if it has no simpler structure. Every kind of bias can compute the float32 rows
of a block of queries (`rows`), which all backends support. Attention backends use the structure if they can.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor


class Bias(ABC):
    """Values that are added to the scaled score of each (head, query, key)."""

    proportional_to: ClassVar[str] = ""
    """Name of the tensor field to which all rows are proportional, or "" if there is none."""
    reads_scores: ClassVar[bool] = False
    """Whether the scores must be written out, because the kind overrides `replaced` or `added`."""

    @property
    def reads_mask(self) -> bool:
        """Whether the rows depend on which keys each query sees; `seen_rows` then needs them."""
        return False

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Return the bias of the queries start…stop−1: float32, broadcastable to (B, H, stop − start, Lk)."""

    def seen_rows(self, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """Return `rows` for queries that see the keys `visible`, (B|1, 1|H, stop − start|1, Lk); None: all keys."""
        return self.rows(start, stop)

    def replaced(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """Return the scaled scores (B, H, stop − start, Lk) that take the place of q·k, before a softcap.

        A kind that overrides this or `added` sets `reads_scores`.
        """
        return scores

    def added(self, scores: Tensor, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """Return scores (B, H, stop − start, Lk) with the bias added.

        Args:
            scores: float32 scores after a softcap.
            start: first query.
            stop: one past the last query.
            visible: which keys each query sees, broadcastable to the scores; None: all keys.
        """
        return scores + self.seen_rows(start, stop, visible)

    def scaled(self, share: Tensor) -> "Bias":
        """Return the bias times a share 0…1 (0-dim): of the same kind if `proportional_to` is set, otherwise dense."""
        if not self.proportional_to:
            return DenseBias(lambda start, stop: at_share(self.rows(start, stop), share))
        scaled = {self.proportional_to: at_share(getattr(self, self.proportional_to), share)}
        return replace(self, **scaled)  # type: ignore[type-var]  # every kind is a dataclass, and this base is none


def at_share(values: Tensor, share: Tensor) -> Tensor:
    """Return share · values; −∞, which hides a key, becomes ln(1 − share), which multiplies exp(score) by 1 − share."""
    return torch.where(values.isneginf(), torch.log1p(-share), values * share)


@dataclass(frozen=True)
class RelativeBias(Bias):
    """A bias with one value per head and relative distance: a Toeplitz matrix, stored as a vector per head.

    Attributes:
        values: float32, (H, Lq + Lk − 1); element n is the value of Δ = offset + n − (Lk − 1), see
            `Positions.distances`.
        query_length: Lq.
        key_length: Lk.
    """

    proportional_to = "values"

    values: Tensor
    query_length: int
    key_length: int
    _within: dict[tuple[int | None, int | None], Tensor] = field(init=False, repr=False, default_factory=dict)

    def flipped_rows(self, start: int, stop: int, reversed_values: Tensor | None = None) -> Tensor:
        """Return the rows of the queries stop−1, …, start (in this order) as a view with O(Lq + Lk) memory.

        If the queries are in reverse order, the matrix is constant along its anti-diagonals (a Hankel matrix) and is a
        strided view of the reversed vector: element (r, j) is at index Lq − stop + r + j.

        Args:
            start: first query.
            stop: one past the last query.
            reversed_values: `values` reversed along the last dimension, if the caller has them (any dtype).

        Returns:
            A view of (H, stop − start, Lk). Rows overlap in memory, so it must not be written to.
        """
        source = self.values.flip(-1) if reversed_values is None else reversed_values
        shape = (source.shape[0], stop - start, self.key_length)
        strides = (source.stride(0), source.stride(1), source.stride(1))
        return source[:, self.query_length - stop :].as_strided(shape, strides)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (1, H, stop − start, Lk)."""
        if self.query_length == 1:
            return self.values.flip(-1)[None, :, None]
        return self.flipped_rows(start, stop).flip(1).unsqueeze(0)

    def within(self, least: int | None, most: int | None) -> Tensor:
        """Return the values, (H, Lq + Lk − 1), with −inf where i − j of query index i and key index j is out of range.

        The range is least ≤ i − j ≤ most; None is no limit. The result is computed once for all layers that share the
        bias.
        """
        if least is None and most is None:
            return self.values
        limits = (least, most)
        if limits not in self._within:
            difference = torch.arange(self.values.shape[-1], device=self.values.device) - (self.key_length - 1)
            hidden = torch.zeros_like(difference, dtype=torch.bool)
            if least is not None:
                hidden = hidden | (difference < least)
            if most is not None:
                hidden = hidden | (difference > most)
            self._within[limits] = self.values.masked_fill(hidden, float("-inf"))
        return self._within[limits]


@dataclass(frozen=True)
class LinearBias(Bias):
    """A bias of −m·Δ with one slope m per head, for causal attention.

    In a causal softmax, −m·(i − j) and +m·j differ by a constant of the row. So extra head channels of q and k can add
    this bias (`attention.folding`), and any fused causal kernel can compute it without a bias argument.

    Attributes:
        slopes: float32, (H,); with positive slopes the bias decreases with distance.
        distances: int64, (Lq + Lk − 1,), see `Positions.distances`.
        query_length: Lq.
        key_length: Lk.
    """

    proportional_to = "slopes"

    slopes: Tensor
    distances: Tensor
    query_length: int
    key_length: int
    _kept: list[RelativeBias] = field(init=False, repr=False, default_factory=list)

    def as_relative(self) -> RelativeBias:
        """Return this bias as a `RelativeBias`, created once for all layers unless the slopes need a gradient."""
        if torch.is_grad_enabled() and self.slopes.requires_grad:
            return self._relative()  # a stored bias would be used outside its layer under gradient checkpointing
        if not self._kept:
            self._kept.append(self._relative())
        return self._kept[0]

    def _relative(self) -> RelativeBias:
        values = -self.slopes[:, None] * self.distances[None, :].to(self.slopes.dtype)
        return RelativeBias(values, self.query_length, self.key_length)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (1, H, stop − start, Lk)."""
        return self.as_relative().rows(start, stop)


@dataclass(frozen=True)
class SeparableBias(Bias):
    """A sum of products of query features and key features, Σ_f left[i, f]·right[j, f]; extra channels can add it.

    Attributes:
        left: float32, (H, Lq, F).
        right: float32, (H, Lk, F).
    """

    proportional_to = "left"

    left: Tensor
    right: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (1, H, stop − start, Lk)."""
        return (self.left[:, start:stop] @ self.right.transpose(-1, -2)).unsqueeze(0)


@dataclass(frozen=True)
class DenseBias(Bias):
    """A bias without a structure that can be used: rows are computed for one block of queries at a time.

    Attributes:
        compute: returns the rows of the queries start…stop−1, float32, broadcastable to (B, H, stop − start, Lk).
    """

    compute: Callable[[int, int], Tensor]

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`."""
        return self.compute(start, stop)

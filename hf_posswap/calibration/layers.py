"""Calibration of one layer: its queries and keys, the weights that calibration of RoPE changes, and its curve."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures import Architecture
from hf_posswap.calibration.alignment import Coordinates
from hf_posswap.calibration.fitting import CalibrationError, FitSettings, fit_curve, mismatch, sum_by_query
from hf_posswap.calibration.key_shift import key_shift
from hf_posswap.calibration.streams import Projections, Stream, projected, projections, turned_units
from hf_posswap.schemes.curves import Curve

SAME_SCORES = 0.05
"""Largest relative change of scores, after a change of coordinates, that rounding in half precision explains."""


def _centred_scores(query: Tensor, key: Tensor) -> Tensor:
    """Return the products of the first text's queries and keys minus each query's mean: float64, (H, L, L)."""
    q, k = query[0].double(), key[0].double()
    scores = q @ k.repeat_interleave(q.shape[0] // k.shape[0], dim=0).mT
    return scores - scores.mean(-1, keepdim=True)


@dataclass(frozen=True)
class FittedLayer:
    """A layer to fit.

    Attributes:
        base: the base model.
        architecture: its architecture.
        block: the layer.
        attention: the layer's attention module.
        pairs: for each batch, the streams of the stock and of the swapped model, which hold the input of the layer.
    """

    base: Any
    architecture: Architecture
    block: Any
    attention: Any
    pairs: list[tuple[Stream, Stream]]

    def samples(self) -> list[Projections]:
        """Return the queries and keys of each batch."""
        return [projections(self.base, self.architecture, self.block, self.attention, *pair) for pair in self.pairs]

    def aligned_samples(self, order: Tensor, settings: FitSettings) -> list[Projections]:
        """Change weights so that scores are closer to the stock model's scores; return the new queries and keys.

        The method first changes the coordinates of each head, then adds a vector to all its keys. These changes do not
        affect the stock model's output. A change that does not reduce a head's mismatch is undone for that head.

        Args:
            order: the order of the head dimensions, see `Scheme.steady_dimensions`.
            settings: weights and iterations of the fit.

        Raises:
            CalibrationError: a change of coordinates changed the scores.
        """
        coordinates = Coordinates(self.architecture, self.attention)
        left = self._mismatch(self.samples(), settings)
        queries_and_keys = [projected(self.block, self.attention, pair[1]) for pair in self.pairs]
        coordinates.align(queries_and_keys, order)
        self._require_same_scores(queries_and_keys[0], coordinates)
        coordinates.put_back(self._mismatch(self.samples(), settings) >= left)
        samples = self.samples()
        left = self._mismatch(samples, settings)
        units = self._turned_units(len(order), samples[0].stock_key.shape[1])
        for _ in range(settings.rounds):
            unshifted = coordinates.shift_keys(key_shift(samples, units, self._causal, settings))
            samples = self.samples()
            now = self._mismatch(samples, settings)
            if bool((now >= left).any()):
                coordinates.put_back_keys(unshifted, now >= left)
                samples = self.samples()
            left = torch.minimum(now, left)
        return samples

    def curve(self, samples: list[Projections], settings: FitSettings) -> tuple[Curve, Tensor]:
        """Return the layer's curve, with sums by query if the scheme needs them, and each head's explained share."""
        curve, share = fit_curve(samples, self._causal, settings)
        groups = self.attention.pos_scheme.content_groups(curve.distances)
        if groups is None:
            return curve, share
        return replace(curve, content=sum_by_query(samples, curve, groups, self._causal, settings)), share

    def _require_same_scores(self, before: tuple[Tensor, Tensor], coordinates: Coordinates) -> None:
        """Undo a change of coordinates that changed scores, which shows that q and k change after their projections.

        Args:
            before: queries and keys before the change.
            coordinates: the coordinates of the heads.

        Raises:
            CalibrationError: the scores changed.
        """
        after = projected(self.block, self.attention, self.pairs[0][1])
        old, new = (_centred_scores(*pair) for pair in (before, after))
        if float((new - old).norm()) > SAME_SCORES * float(old.norm()):
            coordinates.put_back(torch.ones(before[1].shape[1], dtype=torch.bool, device=old.device))
            raise CalibrationError(
                f"{type(self.attention).__name__} changes queries and keys after their projections, so that their "
                "coordinates cannot be chosen by the weights. Heal this scheme without calibration."
            )

    def _turned_units(self, head_dim: int, heads: int) -> "_TurnedUnits":
        """Return a mapping from text length to `turned_units`. Texts of one length have the same positions."""
        by_length = {student.hidden.shape[1]: student for _, student in self.pairs}
        return _TurnedUnits(lambda length: turned_units(self.attention, by_length[length], head_dim, heads))

    @property
    def _causal(self) -> bool:
        return self.architecture.is_causal(self.base.config)

    def _mismatch(self, samples: list[Projections], settings: FitSettings) -> Tensor:
        """Return the mismatch of the scores, summed over each group of heads that share keys, (Hkv,)."""
        heads = samples[0].stock_key.shape[1]
        return mismatch(samples, self._causal, settings).view(heads, -1).sum(1)


class _TurnedUnits(dict[int, Tensor]):
    """A mapping that computes entries on demand and holds one entry, because texts may have hundreds of lengths."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, length: int) -> Tensor:
        self.clear()
        self[length] = self.make(length)
        return self[length]

"""A scheme's layer at a share of its strength, for a ramp from the old mechanism to the scheme."""

from typing import Any

import torch
from torch import Tensor

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import SchemeLayer, ScoreInputs


def blend(old: Tensor, new: Tensor, share: Tensor) -> Tensor:
    """Return (1 − share)·old + share·new in old's dtype, computed in float32 or wider; exact at 0 and 1."""
    if old is new:
        return old
    wide = torch.promote_types(old.dtype, torch.float32)
    return (old.to(wide) * (1 - share) + new.to(wide) * share).to(old.dtype)


class PartialLayer:
    """A scheme's layer at a share of its strength, with the hooks of `SchemeLayer`.

    The hooks' `prepared` is the result of `Scheme.prepare_at`.

    Args:
        layer: the scheme's layer.
        share: 0…1, 0-dim.
    """

    def __init__(self, layer: SchemeLayer, share: Tensor) -> None:
        self.layer = layer
        self.share = share

    @property
    def mixes_values(self) -> bool:
        """See `SchemeLayer.mixes_values`."""
        return self.layer.mixes_values

    @property
    def transforms(self) -> bool:
        """See `SchemeLayer.transforms`."""
        return self.layer.transforms

    @property
    def adds_bias(self) -> bool:
        """See `SchemeLayer.adds_bias`."""
        return self.layer.adds_bias

    def transform_query(self, q: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """See `SchemeLayer.transform_query`."""
        return self._blended(q, self.layer.transform_query(q, positions, prepared))

    def transform_key(self, k: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """See `SchemeLayer.transform_key`."""
        return self._blended(k, self.layer.transform_key(k, positions, prepared))

    def transform_cached(self, q: Tensor, k: Tensor, positions: Positions, prepared: Any) -> tuple[Tensor, Tensor]:
        """See `SchemeLayer.transform_cached`."""
        new_q, new_k = self.layer.transform_cached(q, k, positions, prepared)
        return self._blended(q, new_q), self._blended(k, new_k)

    def _blended(self, old: Tensor, new: Tensor) -> Tensor:
        return new if self.layer.scales_in_prepare else blend(old, new, self.share)

    @property
    def state_size(self) -> int:
        """See `SchemeLayer.state_size`."""
        return self.layer.state_size

    def state(self, hidden_states: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """See `SchemeLayer.state`; the share acts on the bias that is made from it."""
        return self.layer.state(hidden_states, positions, prepared)

    def bias(self, inputs: ScoreInputs) -> Bias | None:
        """See `SchemeLayer.bias`."""
        bias = self.layer.bias(inputs)
        return bias if bias is None or self.layer.scales_in_prepare else bias.scaled(self.share)

    def mix(self, weights: Tensor, start: int, positions: Positions, prepared: Any) -> Tensor:
        """See `SchemeLayer.mix`."""
        return self.layer.mix(weights, start, positions, prepared) * self.share

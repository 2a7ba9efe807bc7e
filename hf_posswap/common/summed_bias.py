"""A bias that sums a step per head and token over the tokens between a query and a key."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_posswap.common.biases import Bias


@dataclass(frozen=True)
class SummedBias(Bias):
    """Minus the sum of the steps of the tokens after the key up to the query, times a factor per query.

    If the key comes after the query, the sum is over the tokens after the query up to the key. With C_j, the sum of all
    steps up to token j, the bias of (i, j) is −f_i·|C_i − C_j|. In a causal softmax it differs from f_i·C_j by a
    constant of the row, so one extra channel of q and k adds it (`attention.folding`).

    Attributes:
        steps: at least 0, float32, (B, H, Lk); 0 for tokens that are hidden from all queries.
        offset: index of the first query among the keys; with a static cache a 0-dim tensor.
        query_length: Lq.
        factors: f, float32, (B, H, Lq); None: 1.
        uneven: whether the mask may hide from a query a token between it and a key that it sees, and show this token to
            another query. The sum is then over the tokens that the query sees.
    """

    proportional_to = "steps"

    steps: Tensor
    offset: int | Tensor
    query_length: int
    factors: Tensor | None = None
    uneven: bool = False

    @property
    def reads_mask(self) -> bool:
        """See `Bias.reads_mask`."""
        return self.uneven

    def sums(self) -> Tensor:
        """Return C, float32, (B, H, Lk). No sum depends on later tokens, not even by rounding."""
        return self.steps.cumsum(-1)

    def rows(self, start: int, stop: int) -> Tensor:
        """See `Bias.rows`: (B, H, stop − start, Lk)."""
        sums = self.sums()
        own = sums.index_select(-1, self._places(start, stop))
        return self._weighted((sums[:, :, None] - own[..., None]).abs(), start, stop)

    def seen_rows(self, start: int, stop: int, visible: Tensor | None) -> Tensor:
        """See `Bias.seen_rows`: (B, H, stop − start, Lk)."""
        if visible is None:
            return self.rows(start, stop)
        sums = torch.where(visible, self.steps[:, :, None], 0.0).cumsum(-1)
        own = self._places(start, stop)[:, None].expand(*sums.shape[:2], -1, -1)
        return self._weighted((sums - sums.gather(-1, own)).abs(), start, stop)

    def _places(self, start: int, stop: int) -> Tensor:
        """Return the indices among the keys of the queries start…stop−1, int64; no token is after the last key."""
        places = torch.arange(start, stop, device=self.steps.device) + self.offset
        return places.clamp(max=self.steps.shape[-1] - 1)

    def _weighted(self, distances: Tensor, start: int, stop: int) -> Tensor:
        return -distances if self.factors is None else -distances * self.factors[:, :, start:stop, None]

"""What stays in the place of a position table that was swapped out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_posswap.schemes.base import blend


class RetiredTable(nn.Module):
    """Stands in the place of a position table that was swapped out.

    Returns the table's mean row (its outlier at position 0 left out) for every position, so that the layer norms see
    what they are used to. The mean row bears the name `weight`: stock classes that load such a checkpoint by mistake
    fail on its shape instead of running without positions. The table itself is kept for `restore`.

    Args:
        rows: the stock position table, (rows, D).
        use_mean: False if the new scheme brings a whole table of its own; zeros that do not learn then stand in.
    """

    ramp_share: Tensor | None = None
    """In a ramp, how much of the mean row stands in the place of the table, 0…1 (0-dim)."""

    def __init__(self, rows: Tensor, use_mean: bool) -> None:
        super().__init__()
        rows = rows.detach()
        mean = rows[1:].float().mean(0, keepdim=True).to(rows.dtype) if len(rows) > 1 else rows.clone()
        self.weight = nn.Parameter(mean if use_mean else torch.zeros_like(mean), requires_grad=use_mean)
        self.table = nn.Buffer(rows.clone())

    def forward(self, position_ids: Tensor) -> Tensor:
        """Return (1, 1, D), whatever the positions; in a ramp (B|1, L, D), for positions that the table has."""
        mean = self.weight.unsqueeze(0)
        return mean if self.ramp_share is None else blend(F.embedding(position_ids, self.table), mean, self.ramp_share)

    def revive(self) -> nn.Embedding:
        """Return the stock table as the module it was."""
        return nn.Embedding.from_pretrained(self.table.clone(), freeze=False)


def table_rows(table: nn.Module | None) -> Tensor | None:
    """Return the rows of a position table, retired or not; None for None."""
    if isinstance(table, RetiredTable):
        return table.table
    return None if table is None else table.weight  # type: ignore[return-value]

"""What stays in the place of a position table that was swapped out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_posswap.schemes.partial import blend


class RetiredTable(nn.Module):
    """Stands in the place of a position table that was swapped out.

    Returns the table's mean row (its outlier at position 0 left out) for every position, so that the layer norms see
    what they are used to. The mean row bears the name `weight`: stock classes that load such a checkpoint by mistake
    fail on its shape instead of running without positions. The table itself is kept for `restore`.

    Args:
        table: the stock position table, with rows (V, D).
        first_row: the first row that a text reads.
        use_mean: False if the new scheme brings a whole table of its own; zeros that do not learn then stand in.
        rest_learns: whether anything else of the stock model learns.
    """

    ramp_share: Tensor | None = None
    """In a ramp, how much of the mean row stands in the place of the table, 0…1 (0-dim)."""
    added: Tensor | None = None
    """What the scheme embeds in this forward, (B|1, L, D)."""

    def __init__(
        self, table: nn.Embedding, first_row: int = 0, use_mean: bool = True, rest_learns: bool = True
    ) -> None:
        super().__init__()
        self.first_row = first_row
        self.stock_table_class = type(table)
        self.stock_attributes = _plain_attributes(table)
        self.learned = table.weight.requires_grad
        """Whether the stock table learned when it was swapped out: its mean row then does."""
        self.use_mean = use_mean
        self.rest_learned = rest_learns
        self.table = nn.Buffer(table.weight.detach().clone())
        self.weight = nn.Parameter(self.stand_in(), requires_grad=use_mean and self.learned)

    def stand_in(self) -> Tensor:
        """Return the row that stands in for the table, (1, D): its mean row, or zeros."""
        rows = self.table
        known = rows[self.first_row + 1 :] if len(rows) > self.first_row + 1 else rows[self.first_row :]
        return known.float().mean(0, keepdim=True).to(rows.dtype) if self.use_mean else torch.zeros_like(rows[:1])

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return (1, 1, D), whatever the positions; (B|1, L, D) with what the scheme embeds, or in a ramp."""
        rows = self.weight.unsqueeze(0)
        if self.ramp_share is not None:
            positions = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][-1]
            rows = blend(F.embedding(positions + self.first_row, self.table), rows, self.ramp_share)
        return rows if self.added is None else rows + self.added.to(rows.dtype)

    def add(self, added: Tensor | None) -> None:
        """Let the next forward add what the scheme embeds, (B|1, L, D), or nothing."""
        for part in self.modules():  # adapters have copies
            if isinstance(part, RetiredTable):
                part.added = added

    def usable_rows(self) -> Tensor:
        """Return the rows of the stock table that a text reads, (L, D)."""
        return self.table[self.first_row :]

    def revive(self, rest_learns: bool = True) -> nn.Embedding:
        """Return the stock table as the module it was.

        It learns if its mean row does by now. Where there is none, it learns as it did when it was swapped out, unless
        the rest of the model was frozen, or unfrozen, in the meantime: then it follows that.

        Args:
            rest_learns: whether anything else of the stock model learns by now.
        """
        table = self.stock_table_class.__new__(self.stock_table_class)
        nn.Module.__init__(table)
        vars(table).update(self.stock_attributes)
        learns = self.learned if rest_learns is self.rest_learned else rest_learns
        if self.use_mean:
            learns = self.weight.requires_grad
        table.weight = nn.Parameter(self.table.clone(), requires_grad=learns)
        return table.train(self.training)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module keeps beside its parameters, buffers, modules and hooks: for a table its numbers."""
    empty = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name not in empty and not name.startswith("_")}


def table_rows(table: nn.Module | None, first_row: int) -> Tensor | None:
    """Return the rows of a position table that a text reads, retired or not; None for None."""
    if table is None:
        return None
    # A table is an embedding, whose weight mypy takes for any attribute of a module.
    return table.usable_rows() if isinstance(table, RetiredTable) else table.weight[first_row:]  # type: ignore[index]

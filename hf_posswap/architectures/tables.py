"""The module that replaces a position table in a swapped model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_posswap.schemes.partial import blend


class RetiredTable(nn.Module):
    """Replaces a position table that was swapped out.

    Returns the table's mean row (without its outlier at position 0) for every position, so that the inputs of the layer
    norms keep their distribution. The mean row has the name `weight`: stock classes that load such a checkpoint by
    mistake fail on its shape instead of running without positions. The table itself is kept for `restore`.

    Args:
        table: the stock position table, with rows (V, D).
        first_row: the first row that a text reads.
        use_mean: False if the new scheme has a whole table of its own; zeros that are not trained then replace the row.
        rest_learns: whether any other weight of the stock model is trained.
    """

    ramp_share: Tensor | None = None
    """In a ramp, the share of the mean row, 0…1 (0-dim); the rest is the table's row."""
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
        """Whether the stock table was trained when it was swapped out; then its mean row is trained too."""
        self.use_mean = use_mean
        self.rest_learned = rest_learns
        self.table = nn.Buffer(table.weight.detach().clone())
        self.weight = nn.Parameter(self.stand_in(), requires_grad=use_mean and self.learned)

    def stand_in(self) -> Tensor:
        """Return the row in the place of the table, (1, D): its mean row, or zeros."""
        rows = self.table
        known = rows[self.first_row + 1 :] if len(rows) > self.first_row + 1 else rows[self.first_row :]
        return known.float().mean(0, keepdim=True).to(rows.dtype) if self.use_mean else torch.zeros_like(rows[:1])

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return (1, 1, D) for any positions; (B|1, L, D) if the scheme embeds positions, or in a ramp."""
        rows = self.weight.unsqueeze(0)
        if self.ramp_share is not None:
            positions = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][-1]
            rows = blend(F.embedding(positions + self.first_row, self.table), rows, self.ramp_share)
        return rows if self.added is None else rows + self.added.to(rows.dtype)

    def add(self, added: Tensor | None) -> None:
        """Let the next forward add what the scheme embeds, (B|1, L, D), or nothing."""
        self.added = added
        if self._modules:  # adapters hold copies of this module
            for part in self.modules():
                if isinstance(part, RetiredTable):
                    part.added = added

    def usable_rows(self) -> Tensor:
        """Return the rows of the stock table that a text reads, (L, D)."""
        return self.table[self.first_row :]

    def revive(self, rest_learns: bool = True) -> nn.Embedding:
        """Return the stock table as the module it was.

        It is trained if its mean row is trained now. Without a mean row, it is trained as when it was swapped out,
        unless the rest of the model was frozen or unfrozen since then: then it follows the rest.

        Args:
            rest_learns: whether any other weight of the stock model is trained now.
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
    """Return a module's attributes besides its parameters, buffers, modules and hooks: for a table its numbers."""
    empty = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name not in empty and not name.startswith("_")}


def table_rows(table: nn.Module | None, first_row: int) -> Tensor | None:
    """Return the rows of a position table that a text reads, retired or not; None for None."""
    if table is None:
        return None
    # The table is an embedding; mypy knows only that `weight` is an attribute of a module.
    return table.usable_rows() if isinstance(table, RetiredTable) else table.weight[first_row:]  # type: ignore[index]

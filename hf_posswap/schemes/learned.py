"""A learned vector per position, added to the embeddings, made longer in one of four ways."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, option, register_scheme
from hf_posswap.schemes.stock_forms import AddedVectors

NEW_TABLE_STD = 0.02
"""Standard deviation of a randomly initialised table (as in GPT-2 and BERT)."""


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(SchemeConfig):
    """Options of `learned`."""

    name: ClassVar[str] = "learned"
    variant_option: ClassVar[str | None] = "extend"

    length: int | None = option(None, "Number of positions. None: as many as the model has.", minimum=1)
    extend: str = option(
        "interpolate",
        "How a table of `length` rows is made from the model's own; wants `length`.",
        choices=("interpolate", "hierarchical", "tile", "last-row"),
    )
    alpha: float = option(0.4, "α of the hierarchical extension.", above=0, maximum=0.499)

    def validate(self) -> None:
        """Refuse `extend` and `alpha` where they would have no effect."""
        if self.extend != "interpolate" and self.length is None:
            raise SchemeConfigError(
                f"learned option extend={self.extend!r} sets how a longer table is made from the model's own: give its "
                f"length too, as learned:{self.extend}:length=4096."
            )
        if self.alpha != 0.4 and self.extend != "hierarchical":
            raise SchemeConfigError(f"learned option 'alpha' has no effect with extend={self.extend!r}.")

    def resolve(self, facts: ModelFacts) -> "LearnedConfig":
        """Take the length from the model."""
        rows = facts.train_length if facts.native_table is None else facts.native_table.shape[0]
        return self if self.length is not None else dataclasses.replace(self, length=rows)


def extend_table(table: Tensor, length: int, how: str, alpha: float = 0.4) -> Tensor:
    """Return a table of `length` rows made from `table` (L, D), in float32.

    - interpolate: E′[i·r] = E[i] with r = length/L, linear between, the last row held.
    - hierarchical (Su 2020): u[p] = (E[p] − α·E[0])/(1 − α), and position a·L + b maps to α·u[a] + (1 − α)·u[b], which
      leaves the first L rows as they are.
    - tile: rows repeat with period L.
    - last-row: positions past the end share the last row.
    """
    rows = table.detach().float()
    old = rows.shape[0]
    if how == "interpolate":
        place = (torch.arange(length, device=rows.device, dtype=torch.float64) * (old / length)).clamp(max=old - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=old - 1)
        weight = (place - low).float()[:, None]
        return rows[low] * (1 - weight) + rows[high] * weight
    index = torch.arange(length, device=rows.device)
    if how == "hierarchical":
        base = (rows - alpha * rows[0]) / (1 - alpha)
        extended = alpha * base[index // old] + (1 - alpha) * base[index % old]
        return torch.cat([rows[:length], extended[old:]])
    if how == "tile":
        return rows[index % old]
    return rows[index.clamp(max=old - 1)]


@register_scheme
class Learned(Scheme):
    """One learned vector per position: the model's own table, that table made longer, or a fresh one."""

    name = "learned"
    pretty_name = "Learned"
    paper = "Gehring et al. 2017, Convolutional Sequence to Sequence Learning"
    paper_url = "https://arxiv.org/abs/1705.03122"
    formula = "x + E[pos]"
    summary = "A learned vector per position, added to the token embeddings; it ends where its table ends."
    advice = (
        "To make a model's own position table longer and keep its inputs unchanged up to the old length. The table "
        "still ends. Heal it at the length it is to read: rows that healing does not reach stay untrained."
    )
    config_class = LearnedConfig
    config: LearnedConfig
    acts_in_layers = False
    stock_form = AddedVectors
    calibration_refusal = (
        "it adds to the embeddings, from where no layer's scores follow by least squares. It starts from the model's "
        "own table where there is one; train it, or choose a scheme that acts in the layers."
    )

    def __init__(self, config: LearnedConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        assert config.length is not None, "the config is resolved before the scheme is made"
        native = facts.native_table
        if native is None:
            table = torch.empty(config.length, facts.hidden_size).normal_(std=NEW_TABLE_STD)
        elif native.is_meta:
            table = torch.empty(config.length, facts.hidden_size, device="meta")
        elif native.shape[0] == config.length:
            table = native.detach().clone()
        else:
            table = extend_table(native, config.length, config.extend, config.alpha).to(native.dtype)
        self.table = nn.Parameter(table)

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse a shorter table, a hierarchical one beyond its limit, and an extension of a table that is missing."""
        assert isinstance(config, LearnedConfig)
        if facts.native_table is None and config.extend != "interpolate":
            return f"it has no position table that extend={config.extend!r} could make longer. Leave extend out."
        if facts.native_table is None or config.length is None:
            return None
        rows = facts.native_table.shape[0]
        if config.length < rows:
            return f"length={config.length} would cut the model's table of {rows} positions. Take length >= {rows}."
        if config.extend == "hierarchical" and config.length > rows * rows:
            return f"a hierarchical table of {rows} rows reaches {rows * rows} positions, not length={config.length}."
        return None

    def longest_position(self) -> int:
        """See `Scheme.longest_position`."""
        return self.table.shape[0]

    def brings_whole_table(self) -> bool:
        """See `Scheme.brings_whole_table`."""
        return True

    def embed(self, positions: Positions) -> Tensor:
        """See `Scheme.embed`."""
        return F.embedding(positions.query, self.table)

    def as_stock(self) -> AddedVectors:
        """See `Scheme.as_stock`."""
        return AddedVectors()

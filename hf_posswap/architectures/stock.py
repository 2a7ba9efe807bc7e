"""How a swapped model is written as a stock one: the table that families with learned positions share."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_posswap.errors import UnsupportedError
from hf_posswap.positions import Positions

DEFAULT_STRETCH = 4
"""A table made of a scheme without a limit gets this many times the rows that the model was trained to read."""


@dataclass(frozen=True, kw_only=True)
class StockModel:
    """A stock model that computes what a swapped one does.

    Attributes:
        words: what stands where the scheme stood, for a person to read.
        max_length: longest text of the stock model.
        values: config values that differ from those of the swapped model's config.
        weights: weights that differ, by their names below the base model.
        configuration_class: dotted path of the config class. None: the family's own.
        modeling_module: the transformers module with the model classes. None: the family's own.
    """

    words: str
    max_length: int
    values: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    configuration_class: str | None = None
    modeling_module: str | None = None


@torch.no_grad()
def table_as_stock(base: Any, table_path: str, limit: int | None, max_length: int | None) -> StockModel:
    """Write what a swapped base model adds to its embeddings as one position table.

    Args:
        base: the swapped base model.
        table_path: name of the position table below it.
        limit: how many positions the model can represent, or None if there is no limit.
        max_length: rows of the table. None: all that there are, or `DEFAULT_STRETCH` times the train length.

    Raises:
        UnsupportedError: there are not as many positions.
    """
    if limit is not None and max_length is not None and max_length > limit:
        raise UnsupportedError(
            f"a table of {max_length} rows cannot be made: scheme {base.pos_scheme.name!r} has positions for {limit} "
            f"tokens only. Take max_length <= {limit}, or leave it out."
        )
    rows = max_length or limit or DEFAULT_STRETCH * base.config.max_position_embeddings
    table = base.get_submodule(table_path)
    weight = table.weight
    steps = torch.arange(rows, device=weight.device).unsqueeze(0)
    whole = table(steps).float().expand(1, rows, -1)
    added = base.pos_scheme.embed(Positions(steps, steps, 0, base.pos_scheme.facts.causal))
    if added is not None:
        whole = whole + added.float()
    return StockModel(
        words=f"a position table of {rows} rows",
        max_length=rows,
        values={"max_position_embeddings": rows},
        weights={f"{table_path}.weight": whole[0].to(weight.dtype).contiguous()},
    )

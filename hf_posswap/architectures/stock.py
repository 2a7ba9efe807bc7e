"""Writing a swapped model as a stock model: as a position table, or as other RoPE parameters."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_posswap.common.positions import Positions
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes.stock_forms import RotaryAngles

DEFAULT_STRETCH = 4
"""Rows of a table made from a scheme without a limit, as a multiple of the train length."""


@dataclass(frozen=True, kw_only=True)
class StockModel:
    """A stock model that computes what a swapped one does.

    Attributes:
        words: description, for users, of the mechanism in the place of the scheme.
        max_length: longest text of the stock model.
        values: config values that differ from those of the swapped model's config.
        weights: weights that differ, by their names below the base model.
        model_type: of the stock model. None: the family's own.
    """

    words: str
    max_length: int
    values: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    model_type: str | None = None


@torch.no_grad()
def table_as_stock(base: Any, table_path: str, limit: int | None, max_length: int | None) -> StockModel:
    """Write what a swapped base model adds to its embeddings as one position table.

    Args:
        base: the swapped base model.
        table_path: name of the position table below it.
        limit: number of positions that the model can represent; None: no limit.
        max_length: rows of the table. None: all that there are, or `DEFAULT_STRETCH` times the train length.

    Raises:
        UnsupportedError: the model has fewer positions.
    """
    if limit is not None and max_length is not None and max_length > limit:
        raise UnsupportedError(
            f"a table of {max_length} rows cannot be made: scheme {base.pos_scheme.name!r} has positions for {limit} "
            f"tokens only. Take max_length <= {limit}, or leave it out."
        )
    rows = max_length or limit or DEFAULT_STRETCH * base.pos_scheme.facts.train_length
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


def angles_as_stock(form: RotaryAngles, known: int, max_length: int | None) -> StockModel:
    """Write RoPE as `rope_parameters`.

    Args:
        form: the angles.
        known: the limit that the config states now.
        max_length: the limit that the stock model is to state; None: the natural one.

    Raises:
        UnsupportedError: dynamic scaling, which takes its train length from the stated limit, with another limit.
    """
    from hf_posswap.architectures.rotary import OPTION_OF_KEY

    options = dict(form.options)
    scaling = options.pop("scaling")
    longest = max_length or max(known, form.longest)
    if scaling == "dynamic":
        train_length = options.pop("original_length")
        if max_length not in (None, train_length):
            raise UnsupportedError(
                f"dynamic scaling takes its train length from the stated limit, which so has to be {train_length}, not "
                f"{max_length}. Leave out max_length: longer texts are read all the same."
            )
        longest = train_length
    key_of_option = {option: key for key, option in OPTION_OF_KEY.items()}
    parameters = {"rope_type": "default" if scaling == "none" else scaling}
    parameters |= {
        key_of_option[name]: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None
    }
    return StockModel(
        words=f"rope_parameters {parameters}",
        max_length=longest,
        values={"rope_parameters": parameters, "max_position_embeddings": longest},
    )

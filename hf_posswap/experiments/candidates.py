"""The candidates of a search: schemes in the form with the most freedom, and mixes that keep some native layers."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import AutoModel

from hf_posswap.architectures import architecture_of
from hf_posswap.errors import PosSwapError
from hf_posswap.experiments.preparation import Refusal
from hf_posswap.schemes import ModelFacts, Scheme, SchemeConfig, check_supported, parse_scheme, scheme_text, schemes
from hf_posswap.swapped.plan import core_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FREEDOM = ("trainable", "per_layer")
"""Switches that give a scheme more parameters, where it has them."""


def model_facts(config: "PretrainedConfig") -> tuple[ModelFacts, int | None]:
    """Return what a scheme may know of a model whose weights are not loaded, and the rows of its position table.

    The second value is None if the model has no position table.
    """
    architecture = architecture_of(config)
    with torch.device("meta"):
        core = core_of(AutoModel.from_config(copy.deepcopy(config)))
    rows = None if architecture.table_path(core) is None else architecture.train_length(core)
    facts = architecture.facts(core)
    # Only the size of the embeddings depends on weights; no limit of a scheme depends on it.
    return dataclasses.replace(facts, native_table=None, embedding_rms=facts.embedding_rms or 1.0), rows


def default_candidates(facts: ModelFacts) -> list[str]:
    """Return every registered scheme, in the form with the most freedom that its options permit."""
    return [_freest(scheme.config_class, facts) for scheme in sorted(schemes, key=lambda item: item.name)]


def _freest(options: type[SchemeConfig], facts: ModelFacts) -> str:
    switches = {name: True for name in FREEDOM if name in options.option_names()}
    try:
        return scheme_text(options.from_options(dict(switches)).resolve(facts), facts)
    except PosSwapError:  # `unsuited` gives the reason
        return options.name


def unsuited(names: Sequence[str], facts: ModelFacts, length: int) -> list[Refusal]:
    """Return the schemes that the model cannot take, or that cannot represent texts of the target length.

    Args:
        names: the schemes, as the user writes them.
        facts: the model's properties.
        length: the target length.

    Raises:
        PosSwapError: a scheme is unknown, or one of its options is invalid.
    """
    found = []
    for name in names:
        config = parse_scheme(name)
        try:
            resolved = config.resolve(facts)
            check_supported(resolved, facts)
            limit = _without_weights(resolved, facts).longest_position()
        except PosSwapError as error:
            found.append(Refusal(name, str(error)))
            continue
        if limit is not None and limit < length:
            found.append(Refusal(name, f"it reads at most {limit} tokens, and the target length is {length}"))
    return found


def _without_weights(config: SchemeConfig, facts: ModelFacts) -> Scheme:
    with torch.device("meta"):
        return config.scheme_type()(config, facts)


def mixing_refusal(facts: ModelFacts, rows: int | None, length: int) -> str | None:
    """Return why no layer of the model can keep its native mechanism at the target length; None if layers can.

    Args:
        facts: the model's properties.
        rows: rows of the model's position table; None: it has none.
        length: the target length.
    """
    if rows is not None:
        return (
            f"the model's own positions are a table of {rows} rows, which enters before all layers and ends before "
            f"{length} tokens, so no layer can keep it"
        )
    if facts.num_layers < 2:
        return "the model has one layer"
    return None


def mixable(name: str, facts: ModelFacts) -> bool:
    """Return whether a scheme can be mixed with the native mechanism: it is another one, and acts in all layers."""
    config = parse_scheme(name).resolve(facts)
    whole = len(config.parts) == 1 and config.layers is None and config.scheme_type().acts_in_layers
    return whole and not _without_weights(config, facts).is_native()


def numbers_kept(layers: int) -> list[int]:
    """Return how many layers the mixes keep native: 1, 2, 4, … up to half of them."""
    return [2**power for power in range(layers.bit_length()) if 2**power <= layers // 2]


def in_layers(name: str, layers: Sequence[int], facts: ModelFacts) -> str:
    """Return the text of a scheme that acts in some layers only."""
    config = dataclasses.replace(parse_scheme(name), layers=tuple(sorted(layers)))
    return scheme_text(config.resolve(facts), facts)


def mixes(name: str, costs: Sequence[float | None], facts: ModelFacts) -> list[str]:
    """Return the mixes of a scheme: in all layers except the most costly ones, which keep the native mechanism.

    Args:
        name: the scheme.
        costs: what swapping each layer alone costs at the old length; None: it could not be measured, and counts as
            the highest cost.
        facts: the model's properties.
    """
    known = [math.inf if cost is None else cost for cost in costs]
    by_cost = sorted(range(len(known)), key=lambda layer: (-known[layer], layer))
    return [in_layers(name, by_cost[kept:], facts) for kept in numbers_kept(len(known))]

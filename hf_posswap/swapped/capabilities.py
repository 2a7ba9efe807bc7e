"""The capability table, made from the declarations of the schemes and the results of discovery in each family."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hf_posswap.architectures import Architecture, architecture_named
from hf_posswap.errors import PosSwapError
from hf_posswap.schemes import ModelFacts, Scheme, check_supported, schemes
from hf_posswap.swapped.plan import core_of

CORE = ("bert", "gemma3_text", "gpt2", "llama")
"""Families whose cells are tested with every invariant, one of each kind. Other families have fewer tests."""
FAMILIES_FILE = Path(__file__).with_name("families.json")
"""Results of a run of the families' tests and the version of transformers; `python docs/families.py` writes it."""


@dataclass(frozen=True)
class Capability:
    """One cell of the capability table.

    Attributes:
        architecture: name of the family.
        mode: "causal" or "encoder".
        scheme: name of the scheme.
        supported: whether the scheme, with its default options, can be swapped in.
        reason: reason if it is not supported, otherwise None.
    """

    architecture: str
    mode: str
    scheme: str
    supported: bool
    reason: str | None


@dataclass(frozen=True)
class Family:
    """A model type of transformers, with the result of its tests.

    Attributes:
        model_type: name of the model type, such as "qwen3".
        mode: "causal" or "encoder".
        native: name of the stock scheme; None if no scheme could be swapped in.
        supported: whether its tests passed.
        reason: reason if it is not supported, otherwise None.
    """

    model_type: str
    mode: str
    native: str | None
    supported: bool
    reason: str | None


@cache
def families() -> tuple[Family, ...]:
    """Return every causal and masked language model of transformers, supported or not."""
    content = json.loads(FAMILIES_FILE.read_text(encoding="utf-8"))
    return tuple(Family(**entry) for entry in content["families"])


def list_architectures() -> list[str]:
    """Return the supported model types, sorted."""
    return sorted({family.model_type for family in families() if family.supported})


def capabilities(model_types: tuple[str, ...] = CORE) -> list[Capability]:
    """Return every cell (architecture, mode, scheme) of some families, supported or not.

    Args:
        model_types: the families.

    Raises:
        UnsupportedError: transformers has no language model of a model type.
    """
    return [
        capability(architecture, causal, scheme)
        for architecture in map(architecture_named, model_types)
        for causal in architecture.modes
        for scheme in sorted(schemes, key=lambda item: item.name)
    ]


def capability(architecture: Architecture, causal: bool, scheme: type[Scheme]) -> Capability:
    """Return one cell, for a model with the family's default config."""
    facts = default_facts(architecture, causal)
    try:
        check_supported(scheme.config_class().resolve(facts), facts)
    except PosSwapError as error:
        return Capability(architecture.name, facts.mode, scheme.name, False, str(error))
    return Capability(architecture.name, facts.mode, scheme.name, True, None)


@cache
def default_facts(architecture: Architecture, causal: bool) -> ModelFacts:
    """Return the facts of a model with the family's default config, with two layers and without weights or a table."""
    from transformers import AutoConfig, AutoModel

    changes: dict[str, Any] = {"num_hidden_layers": 2} | ({"is_decoder": causal} if len(architecture.modes) > 1 else {})
    config = AutoConfig.for_model(architecture.name, **changes)
    with torch.device("meta"):
        core = core_of(AutoModel.from_config(config))
    return replace(architecture.facts(core), native_table=None, embedding_rms=1.0)

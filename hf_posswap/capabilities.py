"""The table of what works where, made from what schemes and architectures declare."""

from dataclasses import dataclass

from hf_posswap.architectures import Architecture, architectures
from hf_posswap.errors import PosSwapError
from hf_posswap.schemes import ModelFacts, Scheme, check_supported, schemes


@dataclass(frozen=True)
class Cell:
    """One cell of the capability table.

    Attributes:
        architecture: the family's name.
        mode: "causal" or "encoder".
        scheme: the scheme's name.
        supported: whether the scheme, with its default options, can enter.
        reason: why not, if not.
    """

    architecture: str
    mode: str
    scheme: str
    supported: bool
    reason: str | None


def capabilities() -> list[Cell]:
    """Return every architecture × mode × scheme cell, supported or why not."""
    return [
        cell(architecture, causal, scheme)
        for architecture in sorted(architectures, key=lambda item: item.name)
        for causal in architecture.modes
        for scheme in sorted(schemes, key=lambda item: item.name)
    ]


def cell(architecture: Architecture, causal: bool, scheme: type[Scheme]) -> Cell:
    """Return one cell, for a model of ordinary shape."""
    facts = _ordinary_facts(architecture, causal)
    try:
        check_supported(scheme.config_class().resolve(facts), facts)
    except PosSwapError as error:
        return Cell(architecture.name, facts.mode, scheme.name, False, str(error))
    return Cell(architecture.name, facts.mode, scheme.name, True, None)


def _ordinary_facts(architecture: Architecture, causal: bool) -> ModelFacts:
    return ModelFacts(
        architecture=architecture.name,
        hidden_size=768,
        num_heads=12,
        num_key_value_heads=12,
        head_dim=64,
        num_layers=12,
        train_length=1024,
        causal=causal,
        native=architecture.native,
    )

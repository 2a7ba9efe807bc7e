"""Several schemes in one model, each in its own layers. The registry of schemes does not contain compositions."""

import dataclasses
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer
from hf_posswap.schemes.support import in_entry


def _smallest(limits: Iterable[int | None]) -> int | None:
    """Return the smallest limit; None if there is none."""
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


@dataclass(frozen=True, kw_only=True)
class CompositionConfig(SchemeConfig):
    """The options of several schemes, which act in different layers.

    One entry may have no layers: it acts in all layers that no other entry names, and `resolve` lists them. Layers that
    belong to no entry keep the model's own mechanism.

    Attributes:
        entries: the configs of the schemes, two or more.
        layers: the layers of all entries; None: all layers of the model, or unknown before `resolve`.
        keep_native: value of `keep_native` in all entries.
        window: always None; each entry has its own window.
        log_n: always False; each entry has its own switch.

    Raises (on construction):
        SchemeConfigError: there are fewer than two entries, two entries name the same layer or have no layers, a scheme
            does not act in layers, or entries differ in `keep_native`.
    """

    entries: tuple[SchemeConfig, ...]
    layers: tuple[int, ...] | None = dataclasses.field(default=None, init=False, compare=False, repr=False)
    keep_native: bool = dataclasses.field(default=False, init=False, compare=False, repr=False)
    window: int | None = dataclasses.field(default=None, init=False, compare=False, repr=False)
    log_n: bool = dataclasses.field(default=False, init=False, compare=False, repr=False)

    # A registered scheme has one name for all its configs, a composition one for each.
    @property
    def name(self) -> str:  # type: ignore[override]
        """The schemes' names, joined by "+"."""
        return "+".join(dict.fromkeys(entry.name for entry in self.entries))

    @property
    def parts(self) -> tuple[SchemeConfig, ...]:
        """See `SchemeConfig.parts`."""
        return self.entries

    def scheme_type(self) -> type[Scheme]:
        """See `SchemeConfig.scheme_type`."""
        return Composition

    def __post_init__(self) -> None:
        if len(self.entries) < 2:
            raise SchemeConfigError(f"a composition has two schemes or more, and here are {len(self.entries)}.")
        for number, entry in enumerate(self.entries):
            if not entry.scheme_type().acts_in_layers:
                with in_entry(number, entry.name, self.entries):
                    raise SchemeConfigError(
                        f"scheme {entry.name!r} enters at the embeddings, before all layers, so it cannot act in some "
                        "of them beside another scheme. Swap it in alone."
                    )
        self._check_layers()
        kept = {entry.keep_native for entry in self.entries}
        if len(kept) > 1:
            raise SchemeConfigError(
                f"the entries {self._listed()} contradict each other: keep_native must be the same in all. Layers that "
                "no entry names keep the model's own mechanism."
            )
        object.__setattr__(self, "keep_native", kept.pop())
        named = [entry.layers for entry in self.entries]
        if None not in named:
            object.__setattr__(self, "layers", tuple(sorted(layer for part in named for layer in part or ())))

    def _check_layers(self) -> None:
        owners: dict[int, int] = {}
        for number, entry in enumerate(self.entries):
            for layer in entry.layers or ():
                if layer in owners:
                    first = owners[layer]
                    raise SchemeConfigError(
                        f"layer {layer} is named by entry {first + 1} ({self.entries[first].name}) and by entry "
                        f"{number + 1} ({entry.name}): a layer has one scheme. Name it in one of them."
                    )
                owners[layer] = number
        if sum(entry.layers is None for entry in self.entries) > 1:
            raise SchemeConfigError(
                f"two of the entries {self._listed()} name no layers: one entry at most may leave layers out, and "
                "takes those that no other entry names. Name the layers of the others, such as layers=0+1."
            )

    def _listed(self) -> str:
        return ", ".join(f"{number} ({entry.name})" for number, entry in enumerate(self.entries, 1))

    def resolve(self, facts: ModelFacts) -> "CompositionConfig":
        """Return the config with the layers of an entry that has none, and with every entry resolved.

        Raises:
            SchemeConfigError: an entry has no layers, and the other entries name all layers.
        """
        named = {layer for entry in self.entries for layer in entry.layers or ()}
        rest = tuple(layer for layer in range(facts.num_layers) if layer not in named)
        entries = []
        for number, entry in enumerate(self.entries):
            with in_entry(number, entry.name, self.entries):
                if entry.layers is None and not rest:
                    raise SchemeConfigError(
                        f"it names no layers, so it takes those that no other entry names, and the other entries name "
                        f"all {facts.num_layers}. Leave it out, or name its layers."
                    )
                entries.append(dataclasses.replace(entry, layers=entry.layers or rest).resolve(facts))
        resolved = CompositionConfig(entries=tuple(entries))
        if set(resolved.layers or ()) >= set(range(facts.num_layers)):
            object.__setattr__(resolved, "layers", None)
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """See `SchemeConfig.to_dict`."""
        return {"name": self.name, "entries": [entry.to_dict() for entry in self.entries]}

    @classmethod
    def option_names(cls) -> list[str]:
        """See `SchemeConfig.option_names`."""
        return ["entries"]


class Composition(Scheme):
    """Several schemes, each in its own layers.

    Args:
        config: a resolved config.
        facts: the model's properties.
    """

    config_class = CompositionConfig
    config: CompositionConfig
    formula = "by layer"
    divided = True

    def __init__(self, config: CompositionConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        # Registered schemes declare both on the class; a composition knows them from its entries.
        self.name = config.name  # type: ignore[misc]
        self.entries = nn.ModuleList(entry.scheme_type()(entry, facts) for entry in config.entries)
        self.pretty_name = " + ".join(dict.fromkeys(entry.pretty_name for entry in self.parts))  # type: ignore[misc]

    @property
    def parts(self) -> tuple[Scheme, ...]:
        """See `Scheme.parts`."""
        return tuple(self.entries)  # type: ignore[arg-type]  # a ModuleList is typed for modules of any kind

    def part(self, number: int) -> Scheme:
        """See `Scheme.part`."""
        return self.entries[number]  # type: ignore[return-value]  # see `parts`

    def prepared_part(self, prepared: Any, number: int) -> Any:
        """See `Scheme.prepared_part`."""
        return prepared[number]

    def prepare(self, positions: Positions) -> tuple[Any, ...]:
        """See `Scheme.prepare`: one result for each entry."""
        return tuple(entry.prepare(positions) for entry in self.parts)

    def prepare_at(self, positions: Positions, share: Tensor) -> tuple[Any, ...]:
        """See `Scheme.prepare_at`: one result for each entry."""
        return tuple(entry.prepare_at(positions, share) for entry in self.parts)

    def longest_position(self) -> int | None:
        """See `Scheme.longest_position`: the smallest value of the entries."""
        return _smallest(entry.longest_position() for entry in self.parts)

    def made_for(self) -> int | None:
        """See `Scheme.made_for`: the smallest value of the entries."""
        return _smallest(entry.made_for() for entry in self.parts)

    def symmetric(self) -> bool:
        """See `Scheme.symmetric`: whether all entries are symmetric."""
        return all(entry.symmetric() for entry in self.parts)

    def length_dependent(self) -> bool:
        """See `Scheme.length_dependent`: whether at least one entry depends on the text length."""
        return any(entry.length_dependent() for entry in self.parts)

    def is_native(self) -> bool:
        """See `Scheme.is_native`: whether all entries equal the native mechanism."""
        return all(entry.is_native() for entry in self.parts)

    def make_layer(self, layer_index: int) -> SchemeLayer:
        """See `Scheme.make_layer`: the entry that names the layer makes it.

        Raises:
            SchemeConfigError: no entry names the layer.
        """
        for entry in self.parts:
            if layer_index in (entry.config.layers or ()):
                return entry.make_layer(layer_index)
        raise SchemeConfigError(f"scheme {self.name!r} has no part in layer {layer_index}: {reprlib.repr(self.config)}")

"""What schemes have in common that rotate q and k in several ways, as RoPE does, and choose one score for each pair.

They need no training: every distance that a rotation shows is one that a RoPE model knows. Keys are cached unrotated,
because a key has a rotation of its own for near and for far queries.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from hf_posswap.common.biases import Bias
from hf_posswap.common.chosen_scores import Alternative, ChosenScores, Reach, index_offset
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option
from hf_posswap.schemes.rope import Rope
from hf_posswap.schemes.rope_config import RopeConfig
from hf_posswap.schemes.rope_layers import Rotation, rotate


class Places(NamedTuple):
    """Positions that queries (B|1, Lq) and keys (B|1, Lk) are rotated by; int64, or float32 if they are fractions."""

    query: Tensor
    key: Tensor


class PairRotation(NamedTuple):
    """One rotation of the queries and of all keys."""

    query: Rotation
    key: Rotation


class AllRotations(NamedTuple):
    """All rotations of one forward.

    Attributes:
        near: the rotation whose scores are given.
        others: the rotations that replace it for some pairs.
    """

    near: PairRotation
    others: tuple[PairRotation, ...]


@dataclass(frozen=True, kw_only=True)
class ChosenRotationsConfig(SchemeConfig, ABC):
    """Options of a scheme that chooses among rotations, and the rule by which it chooses."""

    base: float | None = option(None, "Base of the frequencies. None: the model's own, or 10000.", above=1)

    def rope(self, facts: ModelFacts) -> RopeConfig:
        """Return the options of the RoPE that rotates: the model's own, with its scaling, or plain RoPE."""
        return RopeConfig(base=self.base, keep_native=self.keep_native).resolve(facts)

    def resolve(self, facts: ModelFacts) -> Any:
        """Take the base from the model's RoPE, if it has one."""
        return dataclasses.replace(self, base=self.base or self.rope(facts).base)

    @abstractmethod
    def reaches(self, causal: bool) -> tuple[Reach, ...]:
        """Return, for each rotation after the first, the distances of the pairs that it may be chosen for.

        Args:
            causal: whether attention is causal; queries then see no keys after them.
        """

    @abstractmethod
    def places(self, query: Tensor, key: Tensor, causal: bool) -> tuple[Places, ...]:
        """Return the positions of each rotation for queries and keys at int64 positions (B|1, Lq) and (B|1, Lk)."""

    @abstractmethod
    def choice(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the number of the rotation that gives each pair's score, int64, of positions that broadcast."""


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(ChosenRotationsConfig):
    """Options of a scheme with exact distances near a query and other ones beyond, on both sides of it in encoders."""

    neighbours: int | None = option(
        None, "w: keys at |Δ| < w have exact distances. None: a quarter of the train length.", minimum=1
    )

    def resolve(self, facts: ModelFacts) -> Any:
        """Return the config with the base and w filled in."""
        resolved = super().resolve(facts)
        return dataclasses.replace(resolved, neighbours=self.neighbours or max(1, facts.train_length // 4))

    @property
    def near(self) -> int:
        """Return w of a resolved config."""
        assert self.neighbours is not None, "the config is resolved before the scheme is made"
        return self.neighbours

    def reaches(self, causal: bool) -> tuple[Reach, ...]:
        """See `ChosenRotationsConfig.reaches`."""
        return (Reach(least=self.near), Reach(most=-self.near))[: len(sides(causal))]

    def choice(self, query: Tensor, key: Tensor) -> Tensor:
        """See `ChosenRotationsConfig.choice`."""
        distance = query - key
        return (distance >= self.near).long() + 2 * (distance <= -self.near).long()


def sides(causal: bool) -> tuple[int, ...]:
    """Return the signs of the distances of far keys: those before the query, and in encoders those after it."""
    return (1,) if causal else (1, -1)


class ChosenRotationsLayer(SchemeLayer):
    """Rotates q and k of one layer in several ways, and chooses a score for each pair.

    Args:
        config: options of the scheme.
        causal: whether attention is causal.
    """

    scales_in_prepare = True

    def __init__(self, config: ChosenRotationsConfig, causal: bool) -> None:
        super().__init__()
        self.config = config
        self.reaches = config.reaches(causal)

    def transform_cached(
        self, q: Tensor, k: Tensor, positions: Positions, prepared: AllRotations
    ) -> tuple[Tensor, Tensor]:
        """Apply the first rotation to q and to all keys after the cache."""
        return rotate(q, prepared.near.query, False), rotate(k, prepared.near.key, False)

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`."""
        q, k = inputs.projected
        rotations: AllRotations = inputs.prepared
        alternatives = [
            Alternative(
                rotate(q, rotation.query, False),
                inputs.k if rotation.key is rotations.near.key else rotate(k, rotation.key, False),
                reach,
            )
            for rotation, reach in zip(rotations.others, self.reaches, strict=True)
        ]
        return ChosenScores(
            inputs.q, inputs.k, tuple(alternatives), partial(_choice_rows, self.config, inputs.positions),
            inputs.scaling, index_offset(inputs.positions),
        )  # fmt: skip


def _choice_rows(config: ChosenRotationsConfig, positions: Positions, start: int, stop: int) -> Tensor:
    """Return the choice for the queries start…stop−1, see `ChosenScores.choice`."""
    return config.choice(positions.query[:, start:stop, None], positions.key[:, None, :])


class ChosenRotations(Scheme):
    """A scheme that chooses among rotations; its config has the rule."""

    config_class: ClassVar[type[ChosenRotationsConfig]]
    config: ChosenRotationsConfig

    def __init__(self, config: SchemeConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        self.rope = Rope(self.config.rope(facts), facts)

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse models whose own rotation is unknown, or not of whole heads and alike in all layers."""
        assert isinstance(config, ChosenRotationsConfig)
        if not (config.keep_native or facts.turns_whole_heads):
            return (
                "it rotates queries and keys itself, after the cache. In a model with rotary angles this is possible "
                "only if the model rotates whole heads, by the same angles in all layers, such as Llama. Choose rope "
                "with a scaling, such as rope:yarn, which replaces the angles of any such model."
            )
        if facts.native_rope_unread is not None and not config.keep_native:
            return f"it needs the frequencies of the model's RoPE, which are unknown: {facts.native_rope_unread}."
        return Rope.refusal(config.rope(facts), facts)

    def length_dependent(self) -> bool:
        """See `Scheme.length_dependent`: true if the model's RoPE has a scaling that depends on the text's length."""
        return self.rope.length_dependent()

    def keeps_raw_keys(self) -> bool:
        """See `Scheme.keeps_raw_keys`."""
        return True

    def turns_keys(self) -> bool:
        """See `Scheme.turns_keys`."""
        return True

    def steady_dimensions(self) -> Tensor:
        """See `Scheme.steady_dimensions`: as in `rope`."""
        return self.rope.steady_dimensions()

    def prepare(self, positions: Positions) -> AllRotations:
        """Return the rotations of this forward, which all layers share."""
        return self.prepare_at(positions, None)

    def prepare_at(self, positions: Positions, share: Tensor | None) -> AllRotations:
        """See `Scheme.prepare_at`: the share scales every angle; None leaves the angles unscaled."""
        positions.require_known()
        theta = self.rope.frequencies(positions.row_lengths())
        made: dict[int, Rotation] = {}  # positions that several of them share are rotated by once

        def rotation(places: Tensor) -> Rotation:
            if id(places) not in made:
                made[id(places)] = self.rope.rotation(places, theta, share)
            return made[id(places)]

        places = self.config.places(positions.query, positions.key, self.facts.causal)
        near, *others = [PairRotation(rotation(each.query), rotation(each.key)) for each in places]
        return AllRotations(near, tuple(others))

    def make_layer(self, layer_index: int) -> ChosenRotationsLayer:
        """See `Scheme.make_layer`."""
        return ChosenRotationsLayer(self.config, self.facts.causal)

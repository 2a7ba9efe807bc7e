"""SelfExtend: exact positions near a query, positions of groups of tokens beyond (Jin et al., 2401.01325)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hf_posswap.schemes.base import option, register_scheme
from hf_posswap.schemes.chosen_rotations import ChosenRotations, NeighboursConfig, Places, sides


@dataclass(frozen=True, kw_only=True)
class SelfExtendConfig(NeighboursConfig):
    """Options of `self_extend`."""

    name: ClassVar[str] = "self_extend"

    group: int = option(6, "g: number of tokens that share a position beyond w.", minimum=2)

    def places(self, query: Tensor, key: Tensor, causal: bool) -> tuple[Places, ...]:
        """See `ChosenRotationsConfig.places`."""
        shift, groups = self.near - self.near // self.group, key // self.group
        far = (Places(query // self.group + side * shift, groups) for side in sides(causal))
        return Places(query, key), *far


@register_scheme
class SelfExtend(ChosenRotations):
    """RoPE with the distance ⌊i/g⌋ − ⌊j/g⌋ + w − ⌊w/g⌋ for keys at Δ ≥ w, and the exact distance for nearer keys.

    Far tokens share positions in groups of g, so that a text of up to (T − w)·g + w tokens has no distance beyond the
    train length T. With the defaults w = T/4 and g = 6, which are this package's, it has 4.75·T tokens. The authors
    advise a group somewhat larger than the text's length needs, because the largest distances are the least trained
    ones. In encoders, which the paper does not treat, keys after the query have the same distances with the opposite
    sign.
    """

    name = "self_extend"
    pretty_name = "SelfExtend"
    paper = "Jin et al. 2024, LLM Maybe LongLM: SelfExtend LLM Context Window Without Tuning"
    paper_url = "https://arxiv.org/abs/2401.01325"
    formula = "RoPE at Δ where Δ < w, else at ⌊i/g⌋ − ⌊j/g⌋ + w − ⌊w/g⌋"
    summary = "RoPE with exact distances to near keys, and distances of groups of tokens to far ones."
    advice = (
        "A RoPE model that is to read several times its train length without any training, with all tokens still told "
        "apart by groups."
    )
    config_class = SelfExtendConfig
    config: SelfExtendConfig

    def made_for(self) -> int:
        """See `Scheme.made_for`: (T − w)·g + w."""
        near = self.config.near
        return max(self.facts.train_length - near, 0) * self.config.group + near

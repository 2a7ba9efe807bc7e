"""xPos: RoPE whose scores decay with the distance, at a different rate in each pair (Sun et al., 2212.10554)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from hf_posswap.common.positions import Positions
from hf_posswap.errors import PositionError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, option, register_scheme
from hf_posswap.schemes.rope_frequencies import plain_frequencies
from hf_posswap.schemes.rope_layers import Rotation, rotate

GAMMA = 0.4
"""γ in ζ_n = (2n/d + γ)/(1 + γ), the paper's value. The pair that decays fastest has the factor ζ_0 = 0.29 per
`scale_base` tokens."""
LARGEST = 1e34
LARGEST_HALF = 600.0
"""Largest factors on queries and keys: in float32 and bfloat16, and in float16. With these factors, entries up to 1e4
and up to 100 stay in the range of the dtype."""


@dataclass(frozen=True, kw_only=True)
class XposConfig(SchemeConfig):
    """Options of `xpos`."""

    name: ClassVar[str] = "xpos"

    base: float | None = option(None, "Base of the frequencies. None: the model's own, or 10000.", above=1)
    scale_base: int = option(512, "B: over so many tokens the pair n decays by the factor ζ_n.", minimum=1)
    interleaved: bool = option(False, "Pairs are neighbours, as in the authors' code; otherwise halves (Llama).")

    def resolve(self, facts: ModelFacts) -> "XposConfig":
        """Take the base from the model's RoPE, if it has one."""
        own = (facts.native_rope or {}).get("base") or 10000.0
        return dataclasses.replace(self, base=self.base or own)


class Turns(NamedTuple):
    """The rotation and scaling of the queries and the new keys of a forward, which have the same positions.

    Attributes:
        query: cos and sin times ζ_n^((i − B)/B).
        key: cos and sin times ζ_n^(−(j − B)/B).
    """

    query: Rotation
    key: Rotation


class XposLayer(SchemeLayer):
    """Rotates and scales q and k of one layer.

    Args:
        scheme: the scheme.
        checks: whether this layer refuses positions whose factors exceed float16; one layer checks for all layers.
    """

    scales_in_prepare = True

    def __init__(self, scheme: "Xpos", checks: bool) -> None:
        super().__init__()
        self.interleaved = scheme.config.interleaved
        self.limit = scheme.reach(LARGEST_HALF) if checks else None

    def transform_query(self, q: Tensor, positions: Positions, prepared: Turns) -> Tensor:
        """Rotate and scale q."""
        if q.dtype == torch.float16 and self.limit is not None:
            _check_half(positions, self.limit)
        return rotate(q, prepared.query, self.interleaved)

    def transform_key(self, k: Tensor, positions: Positions, prepared: Turns) -> Tensor:
        """Rotate and scale the new keys; the cache stores the results."""
        return rotate(k, prepared.key, self.interleaved)


def _check_half(positions: Positions, limit: int) -> None:
    """Refuse positions whose factors exceed the range of float16.

    Raises:
        PositionError: the last position is at or past the limit. A traced graph raises torch's RuntimeError instead.
    """
    words = (
        f"scheme 'xpos' scales queries and keys by factors that float16 holds up to position {limit - 1} only. Load "
        "the model in bfloat16 or float32 for longer texts"
    )
    if torch.compiler.is_compiling():
        torch._assert_async(positions.query.amax() < limit, words)
    elif not positions.query.is_meta and positions.farthest >= limit:
        raise PositionError(f"the text reaches position {positions.farthest}, but {words}.")


@register_scheme
class Xpos(Scheme):
    """RoPE with a factor ζ_n^((i − j)/B) on the part of the score from pair n, where ζ_n = (2n/d + γ)/(1 + γ) < 1.

    Pairs that rotate fast decay most, so that only slow pairs contribute to the scores of far keys, and scores do not
    oscillate with the distance. γ = 0.4 and B = 512 are the paper's values. Queries are multiplied by ζ_n^((i − B)/B)
    and keys by ζ_n^(−(j − B)/B), relative to the position B, and the cache stores these keys. The factors grow with the
    position. Texts up to about 63·B tokens are possible in float32 and bfloat16, and up to about 6·B tokens in float16;
    longer texts are refused.
    """

    name = "xpos"
    pretty_name = "xPos"
    paper = "Sun et al. 2023, A Length-Extrapolatable Transformer"
    paper_url = "https://arxiv.org/abs/2212.10554"
    formula = "pairs of q and k turned by pos·θ_n, their product times ζ_n^((i − j)/B)"
    summary = "RoPE with an exponential decay of each pair's part of the score; fast pairs decay most."
    advice = (
        "Causal models that are to read somewhat past the train length with a rotation: what RoPE's fast pairs say "
        "about far keys fades instead of oscillating."
    )
    config_class = XposConfig
    config: XposConfig
    supports_encoder = False
    encoder_refusal = (
        "its factor ζ^((i − j)/B) falls with the distance to the left and grows without bound to the right. The paper "
        "defines it for causal models only; rope is its form without the factor."
    )

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse an odd head dimension, and models whose own rotation is not of whole heads and alike in all layers."""
        if facts.head_dim % 2:
            return f"dimensions rotate in pairs, and the head dimension is {facts.head_dim}."
        if not (config.keep_native or facts.turns_whole_heads):
            return (
                "it rotates queries and keys itself. In a model with rotary angles this is possible only if the model "
                "rotates whole heads, by the same angles in all layers, such as Llama. Choose rope, which replaces "
                "the angles of any such model."
            )
        return None

    def reach(self, largest: float) -> int:
        """Return the number of positions whose factors on queries and keys stay below `largest`."""
        tokens = self.config.scale_base * (1 + math.log(largest) / -math.log(GAMMA / (1 + GAMMA)))
        return math.floor(tokens)

    def longest_position(self) -> int:
        """See `Scheme.longest_position`."""
        return self.reach(LARGEST)

    def turns_keys(self) -> bool:
        """See `Scheme.turns_keys`."""
        return True

    def steady_dimensions(self) -> Tensor:
        """See `Scheme.steady_dimensions`: the last pair, which rotates and decays slowest, comes first."""
        places = torch.arange(self.facts.head_dim)
        pairs = places.view(-1, 2) if self.config.interleaved else places.view(2, -1).t()
        return pairs.flip(0).flatten()

    def prepare(self, positions: Positions) -> Turns:
        """Return the rotation and scaling of queries and keys, which all layers share."""
        return self.prepare_at(positions, None)

    def prepare_at(self, positions: Positions, share: Tensor | None) -> Turns:
        """See `Scheme.prepare_at`: the share scales angles and exponents; None leaves them unscaled."""
        assert self.config.base is not None, "the config is resolved before the scheme is made"
        head_dim, device = self.facts.head_dim, positions.query.device
        at = positions.query[..., None].float()
        angles = at * plain_frequencies(head_dim, self.config.base, device=device)
        pairs = torch.arange(0, head_dim, 2, device=device).float() / head_dim
        exponents = (at / self.config.scale_base - 1) * torch.log((pairs + GAMMA) / (1 + GAMMA))
        if share is not None:
            angles, exponents = angles * share, exponents * share
        cos, sin = angles.cos(), angles.sin()
        query, key = (
            Rotation((cos * factor)[:, None], (sin * factor)[:, None])
            for factor in (exponents.exp(), (-exponents).exp())
        )
        return Turns(query, key)

    def make_layer(self, layer_index: int) -> XposLayer:
        """See `Scheme.make_layer`."""
        return XposLayer(self, checks=layer_index == min(self.config.layers or (0,)))

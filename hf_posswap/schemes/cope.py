"""CoPE: positions that are counted by gates, which the scores open (Golovneva et al., 2405.18719)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hf_posswap.common.biases import Bias
from hf_posswap.common.score_biases import CountedBias, ScoredPairs
from hf_posswap.schemes.base import Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme


@dataclass(frozen=True, kw_only=True)
class CopeConfig(SchemeConfig):
    """Options of `cope`."""

    name: ClassVar[str] = "cope"

    positions: int = option(64, "P: positions 0…P − 1 have vectors; larger counts share the last one.", minimum=2)


class CopeLayer(SchemeLayer):
    """The position vectors e of one layer, (P, D), which all heads share. They start at zero, which is no position."""

    def __init__(self, scheme: "Cope") -> None:
        super().__init__()
        self.position_vectors = nn.Parameter(torch.zeros(scheme.config.positions, scheme.facts.head_dim))

    def bias(self, inputs: ScoreInputs) -> Bias:
        """Return q·e[p]/√D (section 4 of the paper)."""
        positions = inputs.positions
        pairs = ScoredPairs(inputs.q, inputs.k, inputs.scaling, positions.offset, positions.causal)
        return CountedBias(pairs=pairs, table=self.position_vectors.float())


@register_scheme
class Cope(Scheme):
    """A bias q_i·e[p_ij], where p_ij counts the keys from j to i with a gate each: p_ij = Σ_{t=j}^{i} σ(q_i·k_t/√d).

    A head whose queries open the gates of some keys only, such as the ends of sentences, counts in those. e is
    interpolated between whole positions and constant from P − 1 on. Keys that a mask or a window hides do not count.
    Tokens are counted where they stand, so `position_ids` have no effect.

    The gates read the scores as softmax would get them: scaled, as in the authors' code, and after a softcap. q·e is
    scaled as q·k is, which is the default of the authors' training code; the listing in their paper scales q·k alone.

    Gates depend on queries and keys, so scores are written out, a block of queries at a time: no fused kernel can
    compute them.
    """

    name = "cope"
    pretty_name = "CoPE"
    paper = "Golovneva et al. 2024, Contextual Position Encoding: Learning to Count What's Important"
    paper_url = "https://arxiv.org/abs/2405.18719"
    formula = "s + q·e[p_ij]/√d, p_ij = Σ_{t=j}^{i} σ(s_it)"
    summary = "A learned vector per position, where a position counts the keys that the query's scores choose."
    advice = (
        "Where a head should count words, sentences or list items instead of tokens, and there is a budget to heal: it "
        "starts as no position and is the slowest of the schemes that add to the scores."
    )
    supports_encoder = False
    encoder_refusal = (
        "it counts the tokens from a key up to its query, and for keys after the query there is nothing to count. The "
        "paper defines it for causal attention."
    )
    calibration_refusal = (
        "a key's position is a sum of gates, which differs with every text, so a bias by distance does not determine "
        "its vectors. Heal it from the start."
    )
    config_class = CopeConfig
    config: CopeConfig

    def make_layer(self, layer_index: int) -> CopeLayer:
        """See `Scheme.make_layer`."""
        return CopeLayer(self)

"""DeBERTa: queries and keys look up vectors by logarithmic distance (He et al., 2006.03654, section 3.1)."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.biases import Bias
from hf_posswap.common.content_biases import ClippedContentBias, PairedContentBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import Curve

RIDGE = 0.1
"""Penalty on fitted vectors, see `ContentSums.coefficients`."""


@dataclass(frozen=True, kw_only=True)
class DebertaConfig(SchemeConfig):
    """Options of `deberta`."""

    name: ClassVar[str] = "deberta"

    buckets: int = option(256, "k: buckets of distances; an encoder has k for each side.", minimum=4)
    max_distance: int | None = option(
        None, "Distance from which on all keys share the last bucket. None: the train length, at least k.", minimum=2
    )

    def validate(self) -> None:
        """Refuse a `max_distance` without logarithmic buckets."""
        if self.max_distance is not None and self.max_distance <= self.buckets // 2 + 1:
            raise SchemeConfigError(
                f"deberta option 'max_distance' is {self.max_distance}; it must be greater than buckets / 2 + 1 = "
                f"{self.buckets // 2 + 1}, or the logarithmic buckets would be empty."
            )

    def resolve(self, facts: ModelFacts) -> "DebertaConfig":
        """Take `max_distance` from the model's train length."""
        return dataclasses.replace(self, max_distance=self.max_distance or max(facts.train_length, self.buckets))


def log_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Return the bucket −k…k − 1 of each relative distance, int64, in the shape of `distance`.

    Distances up to k/2 have buckets of their own, larger ones logarithmic buckets up to `max_distance`. The order of
    the operations in float32 is that of DeBERTa-v2, so that distances at a bucket's edge are in the same bucket.

    Args:
        distance: Δ = i − j, int64.
        buckets: k.
        max_distance: the distance from which on everything falls into the first or last bucket.
    """
    middle = buckets // 2
    magnitude = distance.abs()
    width = torch.log(torch.tensor((max_distance - 1) / middle))
    far = torch.ceil(torch.log(magnitude.clamp(min=middle).float() / middle) / width * (middle - 1)) + middle
    return torch.where(magnitude <= middle, distance, distance.sign() * far.long()).clamp(-buckets, buckets - 1)


def table_rows(distance: Tensor, config: DebertaConfig, causal: bool) -> Tensor:
    """Return the tables' row for each relative distance, int64, in the shape of `distance`; see `DebertaLayer`.

    Args:
        distance: Δ = i − j, int64.
        config: resolved options.
        causal: whether only Δ ≥ 0 occurs; smaller ones share the row of 0.
    """
    assert config.max_distance is not None, "the config is resolved before the scheme is made"
    if causal:
        return log_bucket(distance.clamp(min=0), config.buckets, config.max_distance)
    return log_bucket(distance, config.buckets, config.max_distance) + config.buckets


class DebertaLayer(SchemeLayer):
    """The vectors of one layer by head and bucket: `position_keys` K and `position_queries` Q, both (H, R, D).

    An encoder has R = 2k rows, for the buckets −k…k − 1. A causal model has the k rows of Δ ≥ 0. All vectors start at
    zero, which is no position.
    """

    def __init__(self, scheme: "Deberta") -> None:
        super().__init__()
        self.config, self.causal = scheme.config, scheme.facts.causal
        rows = self.config.buckets * (1 if self.causal else 2)
        shape = (scheme.facts.num_heads, rows, scheme.facts.head_dim)
        self.position_keys = nn.Parameter(torch.zeros(shape))
        self.position_queries = nn.Parameter(torch.zeros(shape))

    def bias(self, inputs: ScoreInputs) -> Bias:
        """Return (q_i·K_c + k_j·Q_c)/√D, the second and the third term of the paper's equation 4."""
        positions, rows = inputs.positions, inputs.prepared
        zero = 0 if self.causal else len(rows) // 2

        def index_rows(start: int, stop: int) -> Tensor:
            return rows[(positions.distance_rows(start, stop) + zero).clamp(0, len(rows) - 1)]

        by_query = ClippedContentBias(inputs.q, self.position_keys.float(), index_rows, scaling=inputs.scaling)
        return PairedContentBias(by_query, inputs.k, self.position_queries.float())

    def content_groups(self, distances: Tensor) -> Tensor:
        """Return the tables' row for each distance."""
        return table_rows(distances, self.config, self.causal)

    def fit(self, curve: Curve) -> bool:
        """Fit each head's `position_keys` to its scores; a row without data gets the vector of the nearest row.

        `position_queries` stay unchanged, because calibration sums scores by query only.
        """
        sums = curve.content
        assert sums is not None, "content_groups asks for it"
        vectors = sums.coefficients(RIDGE)
        with torch.no_grad():
            self.position_keys.copy_(vectors[:, sums.nearest(self.position_keys.shape[1]).cpu()])
        return True


@register_scheme
class Deberta(Scheme):
    """Scores q·k + q·K_c + k·Q_c, where c is the bucket of the distance: as in T5, linear up to k/2, then logarithmic.

    K and Q hold a vector for each layer, head and bucket. In the paper, one table of position vectors P is shared by
    all layers, and K = P·W_k and Q = P·W_q are its projections by matrices of the layer. A swapped layer has matrices
    that were trained without P, so this scheme learns the projected tables themselves: every pair of K and Q that the
    paper can represent, and more, for k·d·2 numbers per layer and head (twice as many in encoders).

    The buckets are those of DeBERTa-v2 and v3; the paper's first model clips the distance at k instead. As in the
    authors' code, c is the bucket of i − j in both terms; the paper looks up Q by j − i, which names the same rows in
    reverse order. The paper divides the sum by √(3d). This scheme divides by the model's √d, because a model that was
    trained with √d would otherwise change before any vector is learned; a factor on K and Q is learned.
    """

    name = "deberta"
    pretty_name = "DeBERTa"
    paper = "He et al. 2021, DeBERTa: Decoding-enhanced BERT with Disentangled Attention"
    paper_url = "https://arxiv.org/abs/2006.03654"
    formula = "s + (q·K_c + k·Q_c)/√d, c = the logarithmic bucket of i − j"
    summary = "Queries and keys both look up a learned vector by head and logarithmic distance."
    advice = (
        "Encoders, where what a query looks for at a distance and what a key offers at one both count. It has the most "
        "parameters of all schemes and two products with the vectors in every layer."
    )
    config_class = DebertaConfig
    config: DebertaConfig

    def prepare(self, positions: Positions) -> Tensor:
        """Return the tables' row for each distance −M…M, or 0…M in a causal model, with M = `max_distance`: int64."""
        longest = self.config.max_distance
        assert longest is not None, "the config is resolved before the scheme is made"
        every = torch.arange(0 if self.facts.causal else -longest, longest + 1, device=positions.query.device)
        return table_rows(every, self.config, self.facts.causal)

    def make_layer(self, layer_index: int) -> DebertaLayer:
        """See `Scheme.make_layer`."""
        return DebertaLayer(self)

"""Shaw's relative positions: adds a vector per clipped distance to keys and values (Shaw et al., 1803.02155)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.biases import Bias
from hf_posswap.common.content_biases import ClippedContentBias, PairedContentBias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import Curve

RIDGE = 0.1
"""Penalty on fitted vectors, see `ContentSums.coefficients`."""


@dataclass(frozen=True, kw_only=True)
class ShawConfig(SchemeConfig):
    """Options of `shaw`."""

    name: ClassVar[str] = "shaw"

    max_distance: int = option(16, "K: distances are clipped to −K…K.", minimum=1)
    values: bool = option(True, "Also add a vector per distance to the values (a^V); it keeps fused kernels out.")
    query_and_key: bool = option(False, "Keys look up the distance too: + k·a^K (BERT's relative_key_query).")


class ShawLayer(SchemeLayer):
    """The tables a^K and a^V of one layer, (2K + 1, D), with row clip(j − i, −K, K) + K for each distance.

    Their initial values are zero, which is no position.
    """

    def __init__(self, scheme: "Shaw") -> None:
        super().__init__()
        self.max_distance = scheme.config.max_distance
        self.query_and_key = scheme.config.query_and_key
        shape = (2 * self.max_distance + 1, scheme.facts.head_dim)
        self.key_table = nn.Parameter(torch.zeros(shape))
        self.value_table = nn.Parameter(torch.zeros(shape)) if scheme.config.values else None

    @property
    def mixes_values(self) -> bool:  # type: ignore[override]  # a property overrides the class attribute
        """Whether the layer has a value table."""
        return self.value_table is not None

    def index_rows(self, positions: Positions, start: int, stop: int) -> Tensor:
        """Return the table row of each query start…stop−1 and key, int64, (B|1, stop − start, Lk)."""
        return self.content_groups(positions.distance_rows(start, stop))

    def bias(self, inputs: ScoreInputs) -> Bias:
        """Return q·a^K_c/√D, equation 5 of the paper; with the option `query_and_key`, (q + k)·a^K_c/√D."""
        positions = inputs.positions
        bias = ClippedContentBias(
            inputs.q,
            self.key_table.float(),
            lambda start, stop: self.index_rows(positions, start, stop),
            reach=self.max_distance if positions.by_index and positions.causal else None,
            value_table=None if self.value_table is None else self.value_table.float(),
            scaling=inputs.scaling,
        )
        return PairedContentBias(bias, inputs.k) if self.query_and_key else bias

    def mix(self, weights: Tensor, start: int, positions: Positions, prepared: Any) -> Tensor:
        """Return Σ_j α_ij·a^V_c, the second part of equation 3; the code first sums the weights of each distance."""
        assert self.value_table is not None
        index = self.index_rows(positions, start, start + weights.shape[2])[:, None].expand_as(weights)
        by_distance = weights.new_zeros(*weights.shape[:3], self.value_table.shape[0], dtype=torch.float32)
        by_distance = by_distance.scatter_add(-1, index, weights.float())
        return by_distance @ self.value_table.float()

    def content_groups(self, distances: Tensor) -> Tensor:
        """Return the key table's row for each distance."""
        return (-distances).clamp(-self.max_distance, self.max_distance) + self.max_distance

    def fit(self, curve: Curve) -> bool:
        """Fit the key vectors to the scores of all heads; a row without data gets the vector of the nearest row.

        The value table stays unchanged, because scores do not depend on it.
        """
        sums = curve.content
        assert sums is not None, "content_groups asks for it"
        vectors = sums.over_heads().coefficients(RIDGE)[0]
        with torch.no_grad():
            self.key_table.copy_(vectors[sums.nearest(self.key_table.shape[0]).cpu()])
        return True


@register_scheme
class Shaw(Scheme):
    """Adds a learned vector to keys and values that depends on the clipped distance c = clip(j − i, −K, K).

    With `query_and_key`, k·a^K_c/√d is also added to the score, with the same vectors. This is method 4 of Huang et
    al. 2020 (2009.13658) and BERT's `relative_key_query`. It needs a second product with the vectors in each layer.
    Calibration cannot fit it, because calibration sums scores by query only.
    """

    name = "shaw"
    pretty_name = "Shaw relative"
    paper = "Shaw et al. 2018, Self-Attention with Relative Position Representations"
    paper_url = "https://arxiv.org/abs/1803.02155"
    formula = "s + q·a^K_c/√d, output + Σ_j α_ij·a^V_c, c = clip(j − i, −K, K)"
    summary = "A learned vector per clipped distance, added to keys and values."
    advice = (
        "Where left and right, and what a query looks for at each distance, matter more than speed: encoders above all."
    )
    config_class = ShawConfig
    config: ShawConfig

    def __init__(self, config: ShawConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        if config.query_and_key:
            self.calibration_refusal = (
                "with query_and_key its vectors are multiplied with keys too, and calibration sums scores by query "
                "only. Calibrate scheme 'shaw' without the option, or heal from the start."
            )

    def make_layer(self, layer_index: int) -> ShawLayer:
        """See `Scheme.make_layer`."""
        return ShawLayer(self)

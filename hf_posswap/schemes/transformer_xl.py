"""Transformer-XL's relative positions (Dai et al., 1901.02860, section 3.3)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.biases import Bias, DenseBias
from hf_posswap.common.content_biases import RelativeContentBias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.content import log_groups
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.sinusoidal import sinusoids

RIDGE = 0.01
"""Penalty on the fitted W_R, see `ContentSums.coefficients`."""


@dataclass(frozen=True, kw_only=True)
class TransformerXLConfig(SchemeConfig):
    """Options of `transformer_xl`."""

    name: ClassVar[str] = "transformer_xl"

    base: float = option(10000.0, "Base of the sinusoids of the distance.", above=1)


class TransformerXLLayer(SchemeLayer):
    """u, v (H, d) and W_R (H·d, D) of one layer. All start at zero: (q + u)·k = q·k, and no position."""

    def __init__(self, scheme: "TransformerXL") -> None:
        super().__init__()
        heads, dim = scheme.facts.num_heads, scheme.facts.head_dim
        self.base = scheme.config.base
        self.content_bias = nn.Parameter(torch.zeros(heads, dim))
        self.position_bias = nn.Parameter(torch.zeros(heads, dim))
        self.position_weight = nn.Parameter(torch.zeros(heads * dim, scheme.facts.hidden_size))

    def transform_query(self, q: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """Return q + u, for the terms (a) and (c) of the paper's equation."""
        return (q.float() + self.content_bias.float()[:, None]).to(q.dtype)

    def bias(self, inputs: ScoreInputs) -> Bias:
        """Return (q + v)·W_R·r_Δ/√d, the terms (b) and (d). The queries already contain u."""
        q, positions, scaling = inputs.q, inputs.positions, inputs.scaling
        shift = (self.position_bias.float() - self.content_bias.float())[:, None]
        prepared: Tensor | None = inputs.prepared
        if prepared is None:
            query = (q.float() + shift) * scaling
            return DenseBias(lambda start, stop: self.rows_by_position(query, positions, start, stop))
        # Project the distances' vectors with W_R, or the queries if there are fewer of them than head dimensions.
        if q.shape[2] >= q.shape[-1]:
            return RelativeContentBias(q, self.project(prepared), positions.key_length, shift, scaling)
        weight = self.position_weight.float().view(*self.content_bias.shape, -1)
        query = (q.float() + shift) * scaling @ weight
        return RelativeContentBias(query, prepared[None], positions.key_length)

    def project(self, vectors: Tensor) -> Tensor:
        """Return W_R·r per head for distance vectors (N, D): float32, (H, N, d)."""
        heads, dim = self.content_bias.shape
        return (vectors @ self.position_weight.float().t()).view(-1, heads, dim).transpose(0, 1)

    def rows_by_position(self, query: Tensor, positions: Positions, start: int, stop: int) -> Tensor:
        """Return bias rows (B, H, stop − start, Lk) for any positions; each possible distance is projected once."""
        occurring = positions.bounded_distances()
        if occurring is None:
            occurring, index = positions.distance_rows(start, stop).unique(return_inverse=True)
        else:
            index = positions.bounded_index(start, stop)
        table = self.project(sinusoids(occurring, self.position_weight.shape[1], self.base, interleaved=False))
        products = query[:, :, start:stop] @ table.transpose(-1, -2)
        return products.gather(-1, index[:, None].expand(*products.shape[:3], -1))

    def content_groups(self, distances: Tensor) -> Tensor:
        """Return one group for each small distance, and a few groups per doubling for large ones."""
        return log_groups(distances)

    def fit(self, curve: Curve) -> bool:
        """Fit W_R to the scores of each head by least squares, with a fixed v.

        v points in the direction in which the queries vary least, and is several times as long as the queries are in
        that direction. So W_R can represent a bias that does not depend on the query as well as one that does. u stays
        unchanged.
        """
        sums = curve.content
        assert sums is not None, "content_groups asks for it"
        query = sums.query - (self.content_bias.float() * sums.scaling)[:, None]
        still = still_vectors(query)
        basis, directions = self._basis(curve, sums.groups)
        found = replace(sums, query=query + still[:, None]).coefficients(RIDGE, basis)
        with torch.no_grad():
            self.position_bias.copy_(still / sums.scaling)
            self.position_weight.copy_((found.transpose(1, 2) @ directions).flatten(0, 1))
        return True

    def _basis(self, curve: Curve, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return coefficients (G, m) and m basis vectors (m, D) whose product is each group's mean r_Δ: float64.

        Both are scaled as if each r_Δ, whose squared length is D/2, had length 1.
        """
        width = self.position_weight.shape[1]
        vectors = sinusoids(curve.distances, width, self.base, interleaved=False).cpu().double()
        members = (self.content_groups(curve.distances)[None] == groups[:, None]) * curve.weights.sum(0)
        shares = (members / members.sum(1, keepdim=True)).cpu().double()
        scale = (2 / width) ** 0.5
        left, sizes, directions = torch.linalg.svd(shares @ vectors * scale, full_matrices=False)
        return left * sizes, directions * scale


def still_vectors(query: Tensor, strength: float = 10.0) -> Tensor:
    """Return a shift for each head, (H, d), in the direction in which its queries (H, n, d) vary least.

    The mean of the shifted queries in that direction is `strength` times the root mean square of a query's entries.
    """
    mean = query.mean(1)
    centred = query - mean[:, None]
    _, directions = torch.linalg.eigh((centred.transpose(1, 2) @ centred / query.shape[1]).cpu().double())
    direction = directions[..., 0].to(query)
    along = (mean * direction).sum(-1, keepdim=True)
    size = strength * query.square().mean((1, 2)).sqrt()[:, None]
    return (size - along.abs()) * torch.where(along < 0, -direction, direction)


@register_scheme
class TransformerXL(Scheme):
    """Scores [(q + u)·k + (q + v)·W_R·r_Δ]/√d with r_Δ a sinusoid of the distance and learned u, v, W_R."""

    name = "transformer_xl"
    pretty_name = "Transformer-XL"
    paper = "Dai et al. 2019, Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context"
    paper_url = "https://arxiv.org/abs/1901.02860"
    formula = "[(q + u)·k + (q + v)·W_R·r_Δ]/√d"
    summary = "Scores read a projected sinusoid of the distance, with learned global content and position biases."
    advice = "Where the score should read the query and the exact distance; it calibrates best of all and costs most."
    config_class = TransformerXLConfig
    config: TransformerXLConfig

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse an odd hidden size: sines and cosines come in pairs."""
        if facts.hidden_size % 2:
            return f"sines and cosines need an even model width, and it is {facts.hidden_size}."
        return None

    def prepare(self, positions: Positions) -> Tensor | None:
        """Return r_Δ of every distance, from 0 on in a causal model: float32, (N, D); None if positions skip.

        Keys after the query, which a causal model masks, get the vector of distance 0 in `RelativeContentBias`.
        """
        if not positions.by_index:
            return None
        distances = positions.distances
        if positions.causal and isinstance(positions.offset, int):
            distances = distances[positions.key_length - 1 - positions.offset :]
        return sinusoids(distances, self.facts.hidden_size, self.config.base, interleaved=False)

    def make_layer(self, layer_index: int) -> TransformerXLLayer:
        """See `Scheme.make_layer`."""
        return TransformerXLLayer(self)

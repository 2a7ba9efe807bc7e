"""Sinusoidal positions added to the embeddings (Vaswani et al., 1706.03762)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, option, register_scheme
from hf_posswap.schemes.stock_forms import AddedVectors


def sinusoids(positions: Tensor, dim: int, base: float, interleaved: bool) -> Tensor:
    """Return sin and cos of pos/base^(2i/dim) for i = 0…dim/2−1 (Vaswani et al., 1706.03762, section 3.5).

    Args:
        positions: positions or distances, int64, any shape (…).
        dim: length of the vector, even.
        base: 10000 in the paper.
        interleaved: sin and cos alternate (the paper); otherwise all sines, then all cosines (most code).

    Returns:
        float32, (…, dim).
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.int64, device=positions.device).float() / dim
    angles = positions[..., None].float() / base**exponent
    pair = (angles.sin(), angles.cos())
    return torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)


@dataclass(frozen=True, kw_only=True)
class SinusoidalConfig(SchemeConfig):
    """Options of `sinusoidal`."""

    name: ClassVar[str] = "sinusoidal"

    base: float = option(10000.0, "Longest wavelength over 2π.", above=1)
    amplitude: float | None = option(
        None,
        "Factor on the sines. None: gives them the root mean square of the old position table around its mean row, "
        "or of the token embeddings if there is no table.",
        above=0,
    )
    trainable: bool = option(False, "Learn the factor.")
    interleaved: bool = option(True, "Sines and cosines alternate, as in the paper; otherwise one after the other.")

    def resolve(self, facts: ModelFacts) -> "SinusoidalConfig":
        """Take the amplitude from the model."""
        if self.amplitude is not None:
            return self
        return dataclasses.replace(self, amplitude=native_rms(facts) * math.sqrt(2))


def native_rms(facts: ModelFacts) -> float:
    """Return the root mean square of the model's position table around its mean row.

    Row 0, which is an outlier, is left out here and in the mean row that a swap keeps. A model without a table gives
    the root mean square of its token embeddings.

    Raises:
        SchemeConfigError: the weights are not in memory.
    """
    table = facts.native_table
    if facts.embedding_rms is None or (table is not None and table.is_meta):
        raise SchemeConfigError(
            "sinusoidal option 'amplitude' is left open, which takes it from the model's weights, and those are not in "
            "memory (a model on the meta device, or a checkpoint whose config was written by hand). Give it: "
            "sinusoidal:amplitude=0.1, or amplitude among the options of pos_scheme in config.json."
        )
    if table is None or table.shape[0] < 3:
        return facts.embedding_rms
    rows = table[1:].detach().double()
    return float((rows - rows.mean(0)).square().mean().sqrt())


@register_scheme
class Sinusoidal(Scheme):
    """Fixed sines and cosines of the position, added to the token embeddings.

    By default their amplitude is the one that the model is used to: that of its position table if it has one, otherwise
    that of its token embeddings.
    """

    name = "sinusoidal"
    pretty_name = "Sinusoidal"
    paper = "Vaswani et al. 2017, Attention Is All You Need"
    paper_url = "https://arxiv.org/abs/1706.03762"
    formula = "x + a·p, p[2i] = sin(pos/10000^(2i/D)), p[2i+1] = cos(pos/10000^(2i/D))"
    summary = "Fixed sines and cosines of the position, added to the token embeddings."
    advice = "As a fixed table without an end, for comparison with the learned one it replaces."
    config_class = SinusoidalConfig
    config: SinusoidalConfig
    acts_in_layers = False
    stock_form = AddedVectors
    calibration_refusal = (
        "its amplitude acts at the embeddings, from where no layer's scores follow by least squares. It starts at the "
        "size that the model is used to; train it, or choose a scheme that acts in the layers."
    )

    def __init__(self, config: SinusoidalConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        self.amplitude = nn.Parameter(torch.tensor([config.amplitude or 1.0])) if config.trainable else None

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse an odd hidden size: sines and cosines come in pairs."""
        if facts.hidden_size % 2:
            return f"sines and cosines need an even model width, and it is {facts.hidden_size}."
        return None

    def embed(self, positions: Positions) -> Tensor:
        """See `Scheme.embed`."""
        table = sinusoids(positions.query, self.facts.hidden_size, self.config.base, self.config.interleaved)
        if self.amplitude is not None:
            return table * self.amplitude.float()
        assert self.config.amplitude is not None, "the config is resolved before the scheme is made"
        return table * self.config.amplitude

    def as_stock(self) -> AddedVectors:
        """See `Scheme.as_stock`."""
        return AddedVectors()

"""CABLE: a penalty that sums a learned step per head and token (Veisi et al., 2503.08067)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.token_steps import HeadLinear, StepLayer

FACTOR_OF_1 = math.log(math.e - 1)
"""The value whose softplus is 1."""


@dataclass(frozen=True, kw_only=True)
class CableConfig(SchemeConfig):
    """Options of `cable`."""

    name: ClassVar[str] = "cable"

    step: float = option(0.0025, "Step of every token at the start: the slope of the penalty.", above=0)
    weighted: bool = option(True, "Multiply each query's penalties by a learned factor. False: the paper's CABLE_NW.")


class CableLayer(StepLayer):
    """A token's step is ReLU(w_h·x + b_h), and a query's factor softplus(u_h·x + c_h).

    Args:
        facts: facts of the model.
        config: the scheme's options.
    """

    def __init__(self, facts: ModelFacts, config: CableConfig) -> None:
        super().__init__(facts, config.step)
        self.weighting = HeadLinear(facts, FACTOR_OF_1) if config.weighted else None

    def step(self, values: Tensor) -> Tensor:
        """See `StepLayer.step`."""
        return F.relu(values)

    def value_of(self, steps: Tensor) -> Tensor:
        """See `StepLayer.value_of`."""
        return steps

    def factors(self, inputs: ScoreInputs) -> Tensor | None:
        """See `StepLayer.factors`."""
        if self.weighting is None or inputs.hidden_states is None:
            return None
        return F.softplus(self.weighting.of(inputs.hidden_states))

    def fit(self, curve: Curve) -> bool:
        """See `StepLayer.fit`; all factors become 1."""
        if self.weighting is not None:
            self.weighting.set_constant(self.weighting.shift.new_full((len(self.weighting.shift),), FACTOR_OF_1))
        return super().fit(curve)


@register_scheme
class Cable(Scheme):
    """A penalty g_i·Σ f_t over the tokens between query i and key j, with a learned step f_t and a learned factor g_i.

    f_t = ReLU(w_h·x_t + b_h) and g_i = softplus(u_h·x_i + c_h); x is the input of the attention module. Without the
    factor it is the paper's CABLE_NW. The sum is over the tokens after the key up to the query. In an encoder it is the
    absolute value of the difference of two running sums: if the key comes after the query, the sum is over the tokens
    after the query up to the key. So it counts the later of both tokens and not the earlier one, and a reversed text
    has other penalties.

    The activations are those of the authors' code for the factors and for BERT. Their first version has no factors and
    softplus steps; it computes what `fox` computes. Here w and u start at 0, b at an option and c such that factors are
    1: ALiBi with one slope. Calibration fits b, and sets w, u and c back to their start: what a step takes from the
    text itself is learned by healing. A head whose steps are all 0 no longer learns, as ReLU has no gradient there.
    """

    name = "cable"
    pretty_name = "CABLE"
    paper = "Veisi et al. 2025, Context-aware Biases for Length Extrapolation"
    paper_url = "https://arxiv.org/abs/2503.08067"
    formula = "s − g_i·Σ_{t=j+1}^{i} f_t, f_t = ReLU(w_h·x_t + b_h), g_i = softplus(u_h·x_i + c_h)"
    summary = "A penalty on the scores that sums a step which each token sets, times a factor which each query sets."
    advice = (
        "As `fox`, and in encoders too: ALiBi's penalty with slopes that the text sets. It starts as a line, which "
        "calibration fits."
    )
    config_class = CableConfig
    config: CableConfig

    def make_layer(self, layer_index: int) -> CableLayer:
        """See `Scheme.make_layer`."""
        return CableLayer(self.facts, self.config)

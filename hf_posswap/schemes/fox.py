"""FoX: attention with a forget gate per head and token (Lin et al., 2503.02130)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.schemes.base import Scheme, SchemeConfig, option, register_scheme
from hf_posswap.schemes.token_steps import StepLayer


@dataclass(frozen=True, kw_only=True)
class FoxConfig(SchemeConfig):
    """Options of `fox`."""

    name: ClassVar[str] = "fox"

    gate_bias: float = option(
        6.0, "b of every head at the start. A token then takes ln(1 + e^−b) off the scores behind it: 0.0025 at 6."
    )


class FoxLayer(StepLayer):
    """A token's step is minus the logarithm of its forget gate, −ln σ(w_h·x + b_h)."""

    def step(self, values: Tensor) -> Tensor:
        """See `StepLayer.step`."""
        return F.softplus(-values)

    def value_of(self, steps: Tensor) -> Tensor:
        """See `StepLayer.value_of`."""
        return -torch.log(torch.expm1(steps))


@register_scheme
class Fox(Scheme):
    """A forget gate f_t = σ(w_h·x_t + b_h) per head and token; a score is lowered by the gates after its key.

    The bias of query i and key j is Σ_{t=j+1}^{i} ln f_t, and x_t is the input of the attention module. A token that
    closes its gate hides the text before it, and tokens with open gates cost nothing. With w = 0 the bias is ALiBi with
    the slope ln(1 + e^−b). Gates are computed and their logarithms summed in float32. The cache keeps the logarithms
    beside the keys.

    Here w starts at 0, so that all gates are alike, and b at an option. The paper trains from random w and b = 0, gates
    of 1/2, which would hide all but a few tokens from a pretrained model. Its output gate, norms and token shift are
    other parts of its architecture and not of this scheme. It is for causal models only, as in the paper. Calibration
    fits b, and sets w to 0: what a gate takes from the text itself is learned by healing.
    """

    name = "fox"
    pretty_name = "FoX"
    paper = "Lin et al. 2025, Forgetting Transformer: Softmax Attention with a Forget Gate"
    paper_url = "https://arxiv.org/abs/2503.02130"
    formula = "s + Σ_{t=j+1}^{i} ln σ(w_h·x_t + b_h)"
    summary = "A forget gate per head and token: a score falls by the gates of the tokens after its key."
    advice = (
        "Where the text should decide what is forgotten: ALiBi's penalty with a slope that each token sets. It starts "
        "as a line, which calibration fits, so what it adds to `alibi` has to be healed."
    )
    config_class = FoxConfig
    config: FoxConfig
    supports_encoder = False
    encoder_refusal = (
        "a gate forgets what came before it, and an encoder also reads what comes after. The paper defines it for "
        "causal models only; cable sums steps on both sides."
    )

    def make_layer(self, layer_index: int) -> FoxLayer:
        """See `Scheme.make_layer`."""
        return FoxLayer(self.facts, self.config.gate_bias)

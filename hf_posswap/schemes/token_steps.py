"""The layer of schemes whose bias sums a learned step per head and token over the tokens between a query and a key."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.common.summed_bias import SummedBias
from hf_posswap.schemes.base import ModelFacts, SchemeLayer, ScoreInputs
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.relative import bias_by_distance


class HeadLinear(nn.Module):
    """A linear function of the hidden states for each head, w_h·x + b_h, in float32.

    Args:
        facts: facts of the model.
        start: b of every head at the start; w starts at 0.
    """

    def __init__(self, facts: ModelFacts, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(facts.num_heads, facts.hidden_size))
        self.shift = nn.Parameter(torch.full((facts.num_heads,), start))

    def of(self, hidden_states: Tensor) -> Tensor:
        """Return the values (B, H, L) for hidden states (B, L, hidden size)."""
        return F.linear(hidden_states.float(), self.weight.float(), self.shift.float()).transpose(1, 2)

    @torch.no_grad()
    def set_constant(self, values: Tensor) -> None:
        """Make the function of each head constant, (H,)."""
        self.weight.zero_()
        self.shift.copy_(values)


class StepLayer(SchemeLayer, ABC):
    """Holds the function whose value a subclass turns into a token's step.

    The steps are the layer's state, and not their running sums: so they stay right if a window drops tokens.

    Args:
        facts: facts of the model.
        start: b of the function of every head at the start.
    """

    def __init__(self, facts: ModelFacts, start: float) -> None:
        super().__init__()
        self.function = HeadLinear(facts, start)
        self.state_size = facts.num_heads

    @abstractmethod
    def step(self, values: Tensor) -> Tensor:
        """Return the steps, at least 0, for values of the function, in any shape."""

    @abstractmethod
    def value_of(self, steps: Tensor) -> Tensor:
        """Return values of the function for steps above 0: the inverse of `step`."""

    def factors(self, inputs: ScoreInputs) -> Tensor | None:
        """Return the factors on each query's sums, float32, (B, H, Lq), or None for 1."""
        return None

    def state(self, hidden_states: Tensor, positions: Positions, prepared: object) -> Tensor:
        """See `SchemeLayer.state`: the step of each head."""
        return self.step(self.function.of(hidden_states))

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`; without hidden states, the bias is that of hidden states of 0."""
        positions, steps = inputs.positions, inputs.state
        if steps is None:
            steps = self.step(self.function.shift.float())[None, :, None].expand(-1, -1, positions.key_length)
            if not positions.by_index:  # a picture at chosen distances
                slopes = steps[0, :, 0]
                return bias_by_distance(
                    positions, lambda distance: -slopes.view(-1, *[1] * distance.dim()) * distance.abs().float()
                )
        if positions.shown is not None:
            steps = steps.masked_fill(~positions.shown[:, None], 0.0)
        return SummedBias(steps, positions.offset, positions.query_length, self.factors(inputs), positions.uneven)

    def fit(self, curve: Curve) -> bool:
        """Give all tokens of a head the same step: the slope of the line that fits the head's curve best."""
        self.function.set_constant(self.value_of(curve.slopes()))
        return True

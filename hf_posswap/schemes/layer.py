"""The part of a scheme in one attention layer: the hooks through which it acts, and what a bias may depend on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.curves import Curve


@dataclass(slots=True)
class ScoreInputs:
    """The values that a layer's bias may depend on in one attention call.

    Attributes:
        q: queries (B, H, Lq, D), transformed by the scheme.
        k: all keys (B, Hkv, Lk, D), transformed by the scheme.
        positions: positions of the queries and of these keys.
        prepared: what `Scheme.prepare` returned for this forward.
        scaling: factor on q·k.
        projected: queries and all keys before `SchemeLayer.transform_cached` of this layer; without a cache or if the
            cache stores keys unchanged, the keys are those of the stock model.
        state: values of `SchemeLayer.state` for every key, float32, (B, S, Lk); None if the layer has no state, or if
            there are no hidden states, as in pictures of a bias.
        hidden_states: input of the attention module, (B, Lq, hidden size); None if the layer has no state, or if there
            are no hidden states.
    """

    q: Tensor
    k: Tensor
    positions: Positions
    prepared: Any
    scaling: float
    projected: tuple[Tensor, Tensor]
    state: Tensor | None = None
    hidden_states: Tensor | None = None


def log_n_factor(positions: Positions, train_length: int) -> Tensor:
    """Return the factor max(1, ln n/ln T) on queries that see n keys: float32, (B|1, 1, Lq|1, 1).

    It keeps the entropy of attention over n keys near that over T keys (Su 2021; Chiang and Cholak 2022, 2202.12172).
    In a causal model n is the query's position plus one, in an encoder the text's length. So texts up to the train
    length do not change.

    Args:
        positions: positions of this forward.
        train_length: T, at least 2.
    """
    seen = positions.query + 1 if positions.causal else positions.row_lengths()
    return (seen.float().log() / math.log(train_length)).clamp(min=1)[:, None, :, None]


class SchemeLayer(nn.Module):
    """The part of a scheme in one attention layer, with the parameters of that layer. By default no hook does anything.

    `prepared` is what `Scheme.prepare` returned for this forward.
    """

    mixes_values: ClassVar[bool] = False
    """Whether `mix` adds to the output, which then needs the attention weights."""
    scales_in_prepare: ClassVar[bool] = False
    """Whether `Scheme.prepare_at` alone applies a ramp's share, to the transforms and to a bias, see there."""

    by_head: ClassVar[bool] = False
    """Whether the transforms of queries and keys differ by head."""
    awaits: ClassVar[str] = ""
    """What the layer has not got before calibration, in words, if `unfitted` can be true."""

    enters_attention: bool = False
    """Whether the layer's attention calls the scheme: the class overrides a hook below, or `takes` set an option."""
    window: int | None = None
    """The sliding window of the layer, see `SchemeConfig.window`; None: the scheme gives the layer no window."""
    log_n_from: int | None = None
    """T of `log_n_factor`, by which the layer's queries are scaled; None: they are not scaled."""
    transforms: ClassVar[bool] = False
    """Whether the class overrides a hook that changes queries or keys. Such a hook runs before keys are cached."""
    adds_bias: ClassVar[bool] = False
    """Whether the class overrides a hook that depends on distances: a bias, or the value side."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.transforms = cls._overrides("transform_query", "transform_key", "transform_cached")
        cls.adds_bias = cls._overrides("bias", "mix")
        cls.enters_attention = cls.transforms or cls.adds_bias

    state_size: int = 0
    """S, the number of values per token that `state` returns; 0: the layer has no state."""

    def takes(self, window: int | None, log_n_from: int | None) -> Self:
        """Set the options that act in any scheme's layer, see the attributes; return the layer."""
        self.window, self.log_n_from = window, log_n_from
        self.enters_attention = self.enters_attention or window is not None or log_n_from is not None
        return self

    @classmethod
    def _overrides(cls, *hooks: str) -> bool:
        return any(getattr(cls, name) is not getattr(SchemeLayer, name) for name in hooks)

    def transform_query(self, q: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """Transform the queries q (B, H, Lq, D). Queries are not cached."""
        return q

    def transform_key(self, k: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """Transform the new keys k (B, Hkv, Lq, D), at positions `positions.query`, before they are cached."""
        return k

    def transform(self, q: Tensor, k: Tensor, positions: Positions, prepared: Any) -> tuple[Tensor, Tensor]:
        """Apply `transform_query` to q (B, H, Lq, D) and `transform_key` to the new keys k (B, Hkv, Lq, D)."""
        return self.transform_query(q, positions, prepared), self.transform_key(k, positions, prepared)

    def transform_cached(self, q: Tensor, k: Tensor, positions: Positions, prepared: Any) -> tuple[Tensor, Tensor]:
        """Transform q (B, H, Lq, D) and all keys k (B, Hkv, Lk, D) after the cache. The cached keys do not change."""
        return q, k

    def state(self, hidden_states: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """Return S values for each new token, float32, (B, S, Lq), which `bias` gets for every key.

        The values are stored in the cache together with the token's keys. So a beam search, a crop of the cache and a
        sliding window treat them as they treat keys.

        Args:
            hidden_states: input of the attention module, (B, Lq, hidden size).
            positions: positions of this forward.
            prepared: see the class.
        """
        raise TypeError(f"{type(self).__name__} has no state")

    def bias(self, inputs: ScoreInputs) -> Bias | None:
        """Return the bias that is added to the scaled scores."""
        return None

    def score_inputs(
        self,
        q: Tensor,
        k: Tensor,
        positions: Positions,
        prepared: Any,
        scaling: float,
        hidden_states: Tensor | None = None,
    ) -> ScoreInputs:
        """Return the inputs of `bias` for a text in one forward without a cache.

        Args:
            q: projected queries (B, H, L, D).
            k: projected keys (B, Hkv, L, D).
            positions: positions of this forward.
            prepared: see the class.
            scaling: factor on q·k.
            hidden_states: input of the attention module, (B, L, hidden size); None: unknown, then there is no state.
        """
        state = None
        if self.state_size and hidden_states is not None:
            state = self.state(hidden_states, positions, prepared)
        new_q, new_k = self.transform(q, k, positions, prepared)
        new_q, new_k = self.transform_cached(new_q, new_k, positions, prepared)
        return ScoreInputs(new_q, new_k, positions, prepared, scaling, (q, k), state, hidden_states)

    def mix(self, weights: Tensor, start: int, positions: Positions, prepared: Any) -> Tensor:
        """Return the summand of the output (B, H, n, D) of the queries start…start+n−1, given their weights.

        Args:
            weights: attention weights (B, H, n, Lk).
            start: first query of the block.
            positions: positions of this forward.
            prepared: see the class.
        """
        raise TypeError(f"{type(self).__name__} does not mix values")

    def content_groups(self, distances: Tensor) -> Tensor | None:
        """Return a group number for each distance, any int64 numbers in the shape of `distances`.

        A scheme whose bias depends on the query overrides this. `fit` then gets the sums over each group, by query, in
        `Curve.content`. None: `fit` needs only the curve.
        """
        return None

    def unfitted(self) -> Tensor | None:
        """Return whether the layer cannot run before calibration, bool, 0-dim; None: it always can."""
        return None

    def choose(self, stock: Sequence[tuple[Tensor, Tensor]]) -> bool:
        """Choose what the layer does by the stock model's queries and keys; return whether there is such a choice.

        Args:
            stock: for each batch of texts, queries (B, H, n, D), a sample of them, and all keys (B, Hkv, L, D), after
                the native mechanism.
        """
        return False

    def state_in_words(self) -> str:
        """Return what calibration has made of the layer, in words for `describe`; empty if there is nothing to say."""
        return ""

    def fit(self, curve: Curve) -> bool:
        """Fit the layer's own parameters to `curve`; return whether the layer has any."""
        return False

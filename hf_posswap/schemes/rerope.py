"""ReRoPE: RoPE whose distances end at a window, or grow more slowly beyond it (Su, kexue.fm/archives/9708)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_posswap.schemes.base import option, register_scheme
from hf_posswap.schemes.chosen_rotations import ChosenRotations, NeighboursConfig, Places, sides


@dataclass(frozen=True, kw_only=True)
class ReropeConfig(NeighboursConfig):
    """Options of `rerope`."""

    name: ClassVar[str] = "rerope"

    leak: float | None = option(
        None, "k of Leaky ReRoPE: distances beyond w grow by 1/k for each token. None: not at all.", above=1
    )

    def places(self, query: Tensor, key: Tensor, causal: bool) -> tuple[Places, ...]:
        """See `ChosenRotationsConfig.places`."""
        if self.leak is None:
            still = torch.zeros_like(key[:, :1])
            return Places(query, key), *(Places(still + side * self.near, still) for side in sides(causal))
        shift, slowed = self.near * (1 - 1 / self.leak), key.float() / self.leak
        return Places(query, key), *(Places(query / self.leak + side * shift, slowed) for side in sides(causal))


@register_scheme
class Rerope(ChosenRotations):
    """RoPE at the distance min(Δ, w), so that no distance is beyond the window w, however long the text is.

    With `leak` k (Leaky ReRoPE) the distance beyond w is w + (Δ − w)/k, which stays below the train length T in texts
    of up to w + (T − w)·k tokens. The default w = T/4 is that of the author's results with Llama 2. His code also
    multiplies queries by max(1, ln(i + 1)/ln T), as the option `log_n` does. In encoders the distance keeps its sign.
    """

    name = "rerope"
    pretty_name = "ReRoPE"
    paper = "Su 2023, Rectified Rotary Position Embeddings"
    paper_url = "https://github.com/bojone/rerope"
    formula = "RoPE at min(Δ, w); leaky: at w + (Δ − w)/k where Δ > w"
    summary = "RoPE whose distances end at a window, or grow more slowly beyond it."
    advice = (
        "A RoPE model that is to read texts of any length without training. The order of keys beyond the window is "
        "lost, or with leak kept more coarsely."
    )
    config_class = ReropeConfig
    config: ReropeConfig

    def made_for(self) -> int | None:
        """See `Scheme.made_for`: any length; with `leak`, w + (T − w)·k."""
        if self.config.leak is None:
            return None
        near = self.config.near
        return round(near + max(self.facts.train_length - near, 0) * self.config.leak)

"""Dual chunk attention: positions within chunks, between neighbours and between far chunks (An et al., 2402.17463)."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_posswap.common.chosen_scores import Reach
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import ModelFacts, option, register_scheme
from hf_posswap.schemes.chosen_rotations import ChosenRotations, ChosenRotationsConfig, Places


@dataclass(frozen=True, kw_only=True)
class DualChunkConfig(ChosenRotationsConfig):
    """Options of `dual_chunk`."""

    name: ClassVar[str] = "dual_chunk"

    chunk: int | None = option(None, "s: tokens of a chunk. None: three quarters of the train length.", minimum=1)
    local: int | None = option(
        None, "w: distances to the chunk before are exact up to here. None: what the chunk leaves of the train length.",
        minimum=1,
    )  # fmt: skip

    def validate(self) -> None:
        """Refuse a local window that is larger than the chunk."""
        if self.chunk is not None and self.local is not None and self.local > self.chunk:
            raise SchemeConfigError(f"dual_chunk needs local <= chunk, not {self.local} > {self.chunk}.")

    def resolve(self, facts: ModelFacts) -> "DualChunkConfig":
        """Return the config with the base, s and w filled in."""
        chunk = self.chunk or max(1, facts.train_length * 3 // 4, self.local or 0)
        local = self.local or min(max(1, facts.train_length - chunk), chunk)
        return dataclasses.replace(super().resolve(facts), chunk=chunk, local=local)

    @property
    def sizes(self) -> tuple[int, int]:
        """Return s and w of a resolved config."""
        assert self.chunk is not None, "the config is resolved before the scheme is made"
        assert self.local is not None
        return self.chunk, self.local

    def reaches(self, causal: bool) -> tuple[Reach, ...]:
        """See `ChosenRotationsConfig.reaches`."""
        chunk, _ = self.sizes
        return Reach(1, 2 * chunk - 1), Reach(chunk + 1, None)

    def places(self, query: Tensor, key: Tensor, causal: bool) -> tuple[Places, ...]:
        """See `ChosenRotationsConfig.places`."""
        chunk, local = self.sizes
        farthest = chunk + local - 1
        inside, keys = query % chunk, key % chunk
        after_one = (inside + chunk).clamp(max=farthest)
        return Places(inside, keys), Places(after_one, keys), Places(torch.full_like(query[:, :1], farthest), keys)

    def choice(self, query: Tensor, key: Tensor) -> Tensor:
        """See `ChosenRotationsConfig.choice`."""
        chunk, _ = self.sizes
        return (query // chunk - key // chunk).clamp(0, 2)


@register_scheme
class DualChunk(ChosenRotations):
    """RoPE at positions that start anew in each chunk of s tokens, so that no distance is beyond s + w − 1.

    A key at position j is always rotated by j mod s. A query at position i is rotated by i mod s for keys of its own
    chunk, by min(i mod s + s, s + w − 1) for those of the chunk before, which are exact at Δ ≤ w, and by s + w − 1 for
    all earlier keys. The defaults are the paper's: s is three quarters of the train length T, and s + w = T. In the
    authors' code the largest position is s + w, with other defaults.
    """

    name = "dual_chunk"
    pretty_name = "Dual chunk attention"
    paper = "An et al. 2024, Training-Free Long-Context Scaling of Large Language Models"
    paper_url = "https://arxiv.org/abs/2402.17463"
    formula = "RoPE: key at j mod s; query at i mod s, min(i mod s + s, s + w − 1) or s + w − 1, by chunks between"
    summary = "RoPE at positions within chunks: one score in a chunk, one between neighbours, one between far chunks."
    advice = (
        "A RoPE model that is to read texts of any length without training, and to keep exact distances in a large "
        "part of its train length."
    )
    config_class = DualChunkConfig
    config: DualChunkConfig
    supports_encoder = False
    encoder_refusal = (
        "it gives queries positions larger than those of all keys in earlier chunks, and no position for keys in later "
        "chunks. The paper defines it for causal models only; rerope and self_extend work in encoders."
    )

    def made_for(self) -> None:
        """See `Scheme.made_for`: any length."""

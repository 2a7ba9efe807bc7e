"""NoPE: no positional mechanism at all (Haviv et al., 2203.16634; Kazemnejad et al., 2305.19466)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, option, register_scheme
from hf_posswap.schemes.stock_forms import NoMechanism


@dataclass(frozen=True, kw_only=True)
class NoneConfig(SchemeConfig):
    """Options of `none`."""

    name: ClassVar[str] = "none"

    recalibration: float = option(
        0.0, "DroPE's c: beyond the train length T, logits are scaled by 1 + c·ln(n/T). 0: off.", minimum=0
    )
    original_length: int | None = option(None, "T of the recalibration. None: the model's train length.", minimum=1)

    def validate(self) -> None:
        """Refuse options that would have no effect."""
        if self.keep_native and self.recalibration == 0 and self.window is None and not self.log_n:
            raise SchemeConfigError(
                "scheme 'none' with keep_native=True changes nothing: leave out keep_native, or set recalibration > 0, "
                "a window or log_n."
            )

    def resolve(self, facts: ModelFacts) -> "NoneConfig":
        """Fill in the train length."""
        return dataclasses.replace(self, original_length=self.original_length or facts.train_length)


class NoneLayer(SchemeLayer):
    """Scales the queries by DroPE's recalibration factor, if recalibration is on."""

    def transform_query(self, q: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """See `SchemeLayer.transform_query`."""
        return q if prepared is None else (q.float() * prepared).to(q.dtype)


@register_scheme
class NoPositions(Scheme):
    """No positional mechanism: only the causal mask depends on positions.

    DroPE's recalibration (2512.12167) scales all logits by the total text length n. Here n is each query's own
    position plus one, so that a token's output does not depend on what follows it and decoding with a cache equals
    decoding without.
    """

    name = "none"
    pretty_name = "NoPE"
    paper = "Kazemnejad et al. 2023, The Impact of Positional Encoding on Length Generalization in Transformers"
    paper_url = "https://arxiv.org/abs/2305.19466"
    formula = "s"
    summary = "No positional mechanism: a causal model tells positions apart by its mask alone."
    advice = "In causal models, as the plainest baseline, or in some layers beside others that keep RoPE."
    config_class = NoneConfig
    config: NoneConfig
    supports_encoder = False
    stock_form = NoMechanism
    encoder_refusal = (
        "without positions an encoder reads a bag of words, since no causal mask tells tokens apart. "
        "Choose another scheme, or a causal model."
    )

    @classmethod
    def fits_encoder(cls, config: SchemeConfig) -> bool:
        """See `Scheme.fits_encoder`: true if the encoder keeps its own mechanism, for a window or for log_n."""
        return config.keep_native

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse `layers` in a model with a position table, which acts in all layers, and recalibrated encoders."""
        assert isinstance(config, NoneConfig)
        if not facts.causal and config.recalibration:
            return (
                f"recalibration={config.recalibration} counts the tokens before a query, and an encoder reads those "
                "after it too. log_n=true scales by the length of the text."
            )
        if config.layers is not None and facts.native_table is not None:
            return (
                f"its positions enter once, at the embeddings, so they cannot be left out of layers "
                f"{list(config.layers)} only. Leave out `layers`."
            )
        return None

    def prepare(self, positions: Positions) -> Tensor | None:
        """Factor on the queries, float32, (B|1, 1, Lq, 1); None if recalibration is off."""
        if self.config.recalibration == 0:
            return None
        ratio = (positions.query + 1).float() / float(self.config.original_length or 1)
        factor = 1 + self.config.recalibration * torch.log(ratio.clamp(min=1))
        return factor[:, None, :, None]

    def make_layer(self, layer_index: int) -> SchemeLayer:
        """See `Scheme.make_layer`."""
        return NoneLayer() if self.config.recalibration else SchemeLayer()

    def as_stock(self) -> NoMechanism:
        """See `Scheme.as_stock`."""
        if self.config.recalibration:
            raise UnsupportedError(
                f"no stock model scales its logits by 1 + c·ln(n/T) (recalibration={self.config.recalibration}); "
                "recalibration=0 could be exported."
            )
        return NoMechanism(layers=self.config.layers)

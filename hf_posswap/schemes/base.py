"""The contract of a positional scheme: its config, the hooks through which it acts, and the facts it declares.

A scheme depends on torch only, not on a model class or on transformers. It gets the properties of the model that it
needs as `ModelFacts`.
"""

import dataclasses
import reprlib
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from hf_posswap.common.options import check_options, from_text, option, option_types
from hf_posswap.common.positions import Positions
from hf_posswap.common.registry import Registry, unknown_name_message
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.layer import SchemeLayer, ScoreInputs
from hf_posswap.schemes.stock_forms import StockForm


@dataclass(frozen=True)
class ModelFacts:
    """The properties of a model that a scheme may depend on.

    Attributes:
        architecture: the family's name, such as "gpt2".
        hidden_size: size of the hidden states.
        num_heads: number of query heads H.
        num_key_value_heads: number of key and value heads (fewer than H under grouped-query attention).
        head_dim: head dimension D.
        num_layers: number of layers.
        train_length: length of the longest texts, in tokens, that the stock model was trained on.
        causal: whether self-attention is causal.
        native: name of the scheme that the stock model has.
        embedding_rms: root mean square of the token embeddings if the model has no position table, and 1 if it has
            one. None if the weights are not in memory.
        native_rope: the stock model's RoPE options, if it has RoPE (fields of `RopeConfig`); None if they are unknown.
        native_rope_unread: the reason why `native_rope` is unknown, if the model has RoPE and its options are unknown.
        native_table: the stock position table (rows, hidden size), if it has one.
        turns_whole_heads: whether a scheme may rotate q and k itself, and so cache unrotated keys. True if the model
            has no rotation, or one that rotates all dimensions of a head and pairs dimension n with n + D/2.
    """

    architecture: str
    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    num_layers: int
    train_length: int
    causal: bool
    native: str
    embedding_rms: float | None = 1.0
    native_rope: dict[str, Any] | None = None
    native_rope_unread: str | None = None
    native_table: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)
    turns_whole_heads: bool = True

    @property
    def mode(self) -> str:
        """The kind of attention: "causal" or "encoder"."""
        return "causal" if self.causal else "encoder"


@dataclass(frozen=True, kw_only=True)
class SchemeConfig:
    """Options of one scheme, validated on construction.

    `to_dict` converts a config to a JSON-ready dictionary, and `as_config` converts it back.

    Raises (on construction):
        SchemeConfigError: an option of the wrong type or out of range.
    """

    name: ClassVar[str] = ""
    variant_option: ClassVar[str | None] = None
    """The name of the option that `name:variant` sets on the command line."""

    layers: tuple[int, ...] | None = option(
        None, "Layers to act in, counted from 0; elsewhere a per-layer native mechanism stays. None: all.", minimum=0
    )
    keep_native: bool = option(False, "Add to the model's own mechanism instead of replacing it.")
    window: int | None = option(
        None, "Sliding window: a query sees only keys at |Δ| < window in the scheme's layers. None: all.", minimum=1
    )
    log_n: bool = option(
        False, "Scale queries by ln n/ln T where they see n > T keys; T is the train length. See `log_n_factor`."
    )

    @property
    def parts(self) -> "tuple[SchemeConfig, ...]":
        """The configs of the schemes that act, each in its own layers: this one, or the entries of a composition."""
        return (self,)

    def scheme_type(self) -> "type[Scheme]":
        """Return the class of the scheme that these options are for."""
        return schemes.get(self.name)

    def __post_init__(self) -> None:
        check_options(self, SchemeConfigError, f"{self.name} option '{{}}'")
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise SchemeConfigError(f"{self.name} option 'layers' names a layer twice: {reprlib.repr(self.layers)}.")
        if self.layers == ():
            raise SchemeConfigError(f"{self.name} option 'layers' is empty: name the layers, or None for all of them.")
        self.validate()

    def validate(self) -> None:
        """Check that the options do not contradict each other; raise `SchemeConfigError` if they do."""

    def resolve(self, facts: ModelFacts) -> Self:
        """Return the config with the options that depend on the model filled in; checkpoints store this config."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary with the scheme's name and every option."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": self.name} | {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    def anywhere(self) -> Self:
        """Return the config without layers, window and log_n, so that configs of the same mechanism compare equal."""
        return dataclasses.replace(self, layers=None, window=None, log_n=False)

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of the scheme's options."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Make a config from a dictionary of options.

        Raises:
            SchemeConfigError: the scheme has no such option; the message suggests the nearest name.
        """
        for key in options:
            if key not in cls.option_names():
                raise SchemeConfigError(
                    unknown_name_message(f"option of scheme {cls.name!r}:", key, cls.option_names())
                )
        return cls(**options)

    @classmethod
    def from_texts(cls, texts: dict[str, str]) -> Self:
        """Make a config from options written as text, as on the command line.

        Raises:
            SchemeConfigError: an option is unknown, or its text is not a value of its type.
        """
        hints = option_types(cls)
        options: dict[str, Any] = {}
        for key, text in texts.items():
            if key not in cls.option_names():
                raise SchemeConfigError(
                    unknown_name_message(f"option of scheme {cls.name!r}:", key, cls.option_names())
                )
            try:
                options[key] = from_text(text, hints[key])
            except TypeError:
                options[key] = text  # the constructor raises the error, with the option, its value and its type
        return cls.from_options(options)


class Scheme(nn.Module):
    """A positional scheme: one module of the base model, which makes a `SchemeLayer` for each layer.

    Parameters that layers share are in this module; parameters of one layer are in its `SchemeLayer`. Subclasses
    declare the class attributes below and override the hooks that they need. Positions are int64. Angles, slopes and
    biases are computed in float32 and cast last.
    """

    name: ClassVar[str]
    pretty_name: ClassVar[str]
    paper: ClassVar[str]
    paper_url: ClassVar[str]
    formula: ClassVar[str]
    summary: ClassVar[str]
    advice: ClassVar[str]
    """When to choose the scheme, in one or two sentences."""
    config_class: ClassVar[type[SchemeConfig]]

    acts_in_layers: ClassVar[bool] = True
    """False if the scheme acts at the embeddings only."""
    supports_encoder: ClassVar[bool] = True
    encoder_refusal: ClassVar[str] = ""
    """Why an encoder cannot use the scheme; empty if it can."""
    divided: ClassVar[bool] = False
    """Whether the scheme consists of several `parts`."""
    calibration_refusal: str = ""
    """Why calibration can fit none of the scheme's parameters; empty if it can, or if the scheme has none. If the
    reason depends on the options, the scheme sets it on the instance."""
    stock_form: ClassVar[type[StockForm] | None] = None
    """The kind of stock mechanism that the scheme can be exported as; None if there is none."""

    def __init__(self, config: SchemeConfig, facts: ModelFacts) -> None:
        super().__init__()
        self.config = config
        self.facts = dataclasses.replace(facts, native_table=None)

    @property
    def parts(self) -> "tuple[Scheme, ...]":
        """The schemes that act, each in its own layers; their configs are `SchemeConfig.parts`, in the same order."""
        return (self,)

    def part(self, number: int) -> "Scheme":
        """Return one of `parts`."""
        return self

    def prepared_part(self, prepared: Any, number: int) -> Any:
        """Return what `prepare` or `prepare_at` computed for one of `parts`."""
        return prepared

    @classmethod
    def fits_encoder(cls, config: SchemeConfig) -> bool:
        """Return whether an encoder can use the scheme with these options; `supports_encoder` unless overridden."""
        return cls.supports_encoder

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Return why this model cannot use the scheme with these options, or None if it can."""
        return None

    def longest_position(self) -> int | None:
        """Return the number of positions that the scheme can represent, or None if there is no limit."""
        return None

    def made_for(self) -> int | None:
        """Return the text length that the scheme is designed for, or None if it is designed for any length."""
        return self.longest_position()

    def brings_whole_table(self) -> bool:
        """Return whether the embedded vectors replace the position table completely, its mean row included."""
        return False

    def symmetric(self) -> bool:
        """Return whether an encoder with this scheme treats Δ and −Δ alike, and so cannot detect a reversed text."""
        return False

    def length_dependent(self) -> bool:
        """Return whether a token's output depends on the total text length, not only on the tokens before it."""
        return False

    def turns_keys(self) -> bool:
        """Return whether the scheme rotates pairs of dimensions of q and k, as a model's own RoPE does."""
        return False

    def enters_as_angles(self) -> bool:
        """Return whether the scheme only replaces the angles of the model's own RoPE; `prepare` then returns them."""
        return False

    def is_native(self) -> bool:
        """Return whether the scheme equals the model's native mechanism, so that the model stays unchanged."""
        return False

    def keeps_raw_keys(self) -> bool:
        """Return whether keys are cached untransformed, because their transform depends on the text length."""
        return False

    def steady_dimensions(self) -> Tensor | None:
        """Return the head dimensions, int64 (D,), ordered by how much their part of a score changes with the distance.

        The dimension that changes least comes first. Calibration moves the largest components of each head's queries
        and keys to the first ones. None: the scheme treats all dimensions alike.
        """
        return None

    def embed(self, positions: Positions) -> Tensor | None:
        """Return vectors to add to the token embeddings: (B|1, Lq, hidden size), float32 or the parameters' dtype.

        None: the scheme adds nothing to the embeddings.
        """
        return None

    def prepare(self, positions: Positions) -> Any:
        """Compute, once per forward, the values that depend on positions only; every layer's hooks receive them."""
        return None

    def prepare_at(self, positions: Positions, share: Tensor) -> Any:
        """Compute what `prepare` computes, for a ramp that applies the scheme at a share 0…1 (0-dim) of its strength.

        By default this returns the full strength, and the ramp blends q and k linearly with their transforms. A linear
        blend is wrong for rotations: the mean of a vector and its rotation is shorter than the vector, by an amount
        that depends on the absolute position. A scheme that rotates q and k scales its angles here and sets
        `SchemeLayer.scales_in_prepare`.
        """
        return self.prepare(positions)

    def fit(self, curves: list[Curve]) -> bool:
        """Fit the parameters that layers share to the curves of all layers; return whether there are any."""
        return False

    def make_layer(self, layer_index: int) -> SchemeLayer:
        """Return the scheme's module for one layer."""
        return SchemeLayer()

    def as_stock(self) -> StockForm:
        """Return the stock mechanism, an instance of `stock_form`, that equals the scheme with its options.

        Raises:
            UnsupportedError: no stock model computes the same; the message gives the reason.
        """
        raise UnsupportedError(f"no stock model of a supported family has {self.pretty_name} ({self.formula}).")


schemes: Registry[type[Scheme]] = Registry("positional scheme")


def register_scheme(scheme: type[Scheme]) -> type[Scheme]:
    """Class decorator that adds a scheme to the registry under its `name`."""
    return schemes.register(scheme)


__all__ = [
    "ModelFacts",
    "Scheme",
    "SchemeConfig",
    "SchemeLayer",
    "ScoreInputs",
    "option",
    "register_scheme",
    "schemes",
]

"""The contract of a positional scheme: its config, the hooks through which it acts, and the facts it declares.

A scheme knows torch only: no model, no transformers. What it must know of a model comes as `ModelFacts`.
"""

import dataclasses
import reprlib
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from hf_posswap.biases import Bias
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.options import check_options, from_text, option, option_types
from hf_posswap.positions import Positions
from hf_posswap.registry import Registry, unknown_name_message
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.stock_forms import StockForm


@dataclass(frozen=True)
class ModelFacts:
    """What a scheme may know about the model it enters.

    Attributes:
        architecture: the family's name, such as "gpt2".
        hidden_size: D.
        num_heads: query heads H.
        num_key_value_heads: key and value heads (fewer than H under grouped-query attention).
        head_dim: d.
        num_layers: number of layers.
        train_length: longest text the stock model was trained to read.
        causal: whether self-attention is causal.
        native: name of the scheme the stock model has.
        embedding_rms: root mean square of the token embeddings of a model without a position table; with one, 1; None
            if the weights are not in memory.
        native_rope: the stock model's RoPE options, if it has RoPE (fields of `RopeConfig`); None if they are unknown.
        native_rope_unread: why they are unknown, if it has RoPE and they are.
        native_table: the stock position table (rows, D), if it has one.
        turns_whole_heads: whether a scheme may turn q and k itself, and so cache keys unturned: the model has no
            rotation, or one of whole heads by halves.
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
    """Options of one scheme, validated on construction; JSON round trip by `to_dict` and `as_config`.

    Raises (on construction):
        SchemeConfigError: an option of the wrong type or out of range.
    """

    name: ClassVar[str] = ""
    variant_option: ClassVar[str | None] = None
    """The option that `name:variant` on the command line sets."""

    layers: tuple[int, ...] | None = option(
        None, "Layers to act in, counted from 0; elsewhere a per-layer native mechanism stays. None: all.", minimum=0
    )
    keep_native: bool = option(False, "Add to the model's own mechanism instead of replacing it.")

    def __post_init__(self) -> None:
        check_options(self, SchemeConfigError, f"{self.name} option '{{}}'")
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise SchemeConfigError(f"{self.name} option 'layers' names a layer twice: {reprlib.repr(self.layers)}.")
        if self.layers == ():
            raise SchemeConfigError(f"{self.name} option 'layers' is empty: name the layers, or None for all of them.")
        self.validate()

    def validate(self) -> None:
        """Check what concerns several options together; raise `SchemeConfigError`."""

    def resolve(self, facts: ModelFacts) -> Self:
        """Return the config with every open option filled in from the model, as it is stored in checkpoints."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary with the scheme's name and every option."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": self.name} | {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of the scheme's options."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Make a config from a dictionary of options.

        Raises:
            SchemeConfigError: an option the scheme does not have; the nearest one is suggested.
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
            SchemeConfigError: an unknown option, or a text that is no value of it.
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
                options[key] = text  # construction names the value, the option and what it must be
        return cls.from_options(options)


class SchemeLayer(nn.Module):
    """What a scheme does in one attention layer, with the parameters that live there. Every hook defaults to nothing.

    `prepared` is what `Scheme.prepare` returned for this forward.
    """

    mixes_values: ClassVar[bool] = False
    """Whether `mix` adds to the output, which then needs the attention weights."""
    scales_in_prepare: ClassVar[bool] = False
    """Whether `Scheme.prepare_at` is all that a ramp takes for the transforms, see there."""

    enters_attention: ClassVar[bool] = False
    """Whether any hook below does something, so that the layer's attention has to run through the scheme."""
    transforms: ClassVar[bool] = False
    """Whether any of them changes queries or keys, so that new keys have to be seen on their way into the cache."""
    adds_bias: ClassVar[bool] = False
    """Whether any of them reads the distance of a query and a key, in a bias or on the value side."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.transforms = cls._overrides("transform_query", "transform_key", "transform_cached")
        cls.adds_bias = cls._overrides("bias", "mix")
        cls.enters_attention = cls.transforms or cls.adds_bias

    @classmethod
    def _overrides(cls, *hooks: str) -> bool:
        return any(getattr(cls, name) is not getattr(SchemeLayer, name) for name in hooks)

    def transform_query(self, q: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """Change the queries q (B, H, Lq, d); nothing of them is cached."""
        return q

    def transform_key(self, k: Tensor, positions: Positions, prepared: Any) -> Tensor:
        """Change the new keys k (B, Hkv, Lq, d), which stand at `positions.query`, before they enter the cache."""
        return k

    def transform(self, q: Tensor, k: Tensor, positions: Positions, prepared: Any) -> tuple[Tensor, Tensor]:
        """Change q (B, H, Lq, d) and the new keys k (B, Hkv, Lq, d) as before the cache."""
        return self.transform_query(q, positions, prepared), self.transform_key(k, positions, prepared)

    def transform_cached(self, q: Tensor, k: Tensor, positions: Positions, prepared: Any) -> tuple[Tensor, Tensor]:
        """Change q (B, H, Lq, d) and all keys k (B, Hkv, Lk, d) after the cache, which then holds them unchanged."""
        return q, k

    def bias(self, q: Tensor, positions: Positions, prepared: Any, scaling: float) -> Bias | None:
        """Return what is added to the scaled scores of q (B, H, Lq, d); `scaling` is the factor on q·k."""
        return None

    def mix(self, weights: Tensor, start: int, positions: Positions, prepared: Any) -> Tensor:
        """Return what is added to the output (B, H, n, d) of the queries start…start+n−1, given their weights.

        Args:
            weights: attention weights (B, H, n, Lk).
            start: first query of the block.
            positions: positions of this forward.
            prepared: see the class.
        """
        raise TypeError(f"{type(self).__name__} does not mix values")

    def content_groups(self, distances: Tensor) -> Tensor | None:
        """Return the group of each distance, any int64 in its shape, over which `fit` needs sums by query.

        For a bias that reads the query: its layer finds the sums in `Curve.content`. None: the curve is enough.
        """
        return None

    def fit(self, curve: Curve) -> bool:
        """Set the layer's own parameters to what explains `curve` best; return whether there was anything to set."""
        return False


class Scheme(nn.Module):
    """A positional scheme as one module at the base model; per-layer parameters are in the layers it makes.

    Subclasses declare the class attributes below and override the hooks they need. Positions come in as int64;
    angles, slopes and biases are computed in float32 and cast last.
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
    """False if the scheme enters at the embeddings only."""
    supports_encoder: ClassVar[bool] = True
    encoder_refusal: ClassVar[str] = ""
    """Why an encoder cannot take the scheme, if it cannot."""
    calibration_refusal: ClassVar[str] = ""
    """Why calibration can fit none of the scheme's parameters, if it has some and it cannot."""
    stock_form: ClassVar[type[StockForm] | None] = None
    """What the scheme is in a stock model, if stock models have a word for it."""

    def __init__(self, config: SchemeConfig, facts: ModelFacts) -> None:
        super().__init__()
        self.config = config
        self.facts = dataclasses.replace(facts, native_table=None)

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Return why this model cannot take the scheme with these options, or None if it can."""
        return None

    def longest_position(self) -> int | None:
        """Return how many positions the scheme can represent, or None if there is no limit."""
        return None

    def made_for(self) -> int | None:
        """Return the length of the texts that the scheme is made to read, or None if it is made for any length."""
        return self.longest_position()

    def brings_whole_table(self) -> bool:
        """Return whether what the scheme embeds takes the place of a position table altogether, mean row included."""
        return False

    def symmetric(self) -> bool:
        """Return whether, in an encoder, left and right are alike: such a model cannot tell a text from its mirror."""
        return False

    def length_dependent(self) -> bool:
        """Return whether what a token computes depends on the total text length, not only on what precedes it."""
        return False

    def turns_keys(self) -> bool:
        """Return whether the scheme turns pairs of dimensions, as a model's own rotation may do."""
        return False

    def enters_as_angles(self) -> bool:
        """Return whether the scheme is other angles for a model's own rotation, which `prepare` then returns."""
        return False

    def is_native(self) -> bool:
        """Return whether the scheme is what the model has, so that nothing of it is to be changed."""
        return False

    def keeps_raw_keys(self) -> bool:
        """Return whether keys are cached untransformed, because their transformation changes with the text length."""
        return False

    def steady_dimensions(self) -> Tensor | None:
        """Return the head dimensions, int64 (d,), from the one whose part of a score changes least with the distance.

        Calibration then puts there what each head reads most. None: the scheme treats them alike.
        """
        return None

    def embed(self, positions: Positions) -> Tensor | None:
        """Return what is added to the token embeddings, (B|1, Lq, D) in float32 or the parameters' dtype."""
        return None

    def prepare(self, positions: Positions) -> Any:
        """Compute once per forward what depends on positions only; every layer's hooks receive it."""
        return None

    def prepare_at(self, positions: Positions, share: Tensor) -> Any:
        """Compute what `prepare` does, for a ramp that has brought the scheme to a share 0…1 (0-dim) of its strength.

        By default the layers' transforms stay whole, and q and k are blended linearly with what they make of them. That
        is wrong for turns: between a vector and a turned one lies a shorter one, and its length would depend on the
        absolute position. A scheme that turns q and k scales its angles here and has `SchemeLayer.scales_in_prepare`.
        """
        return self.prepare(positions)

    def fit(self, curves: list[Curve]) -> bool:
        """Set the parameters that layers share to what explains their curves best; return whether there are any."""
        return False

    def make_layer(self, layer_index: int) -> SchemeLayer:
        """Make the module that acts in one layer."""
        return SchemeLayer()

    def as_stock(self) -> StockForm:
        """Return what the scheme, with its options, is in a stock model: a `stock_form`.

        Raises:
            UnsupportedError: no stock model computes the same; the message gives the reason.
        """
        raise UnsupportedError(f"no stock model of a supported family has {self.pretty_name} ({self.formula}).")


schemes: Registry[type[Scheme]] = Registry("positional scheme")


def register_scheme(scheme: type[Scheme]) -> type[Scheme]:
    """Class decorator that adds a scheme to the registry under its `name`."""
    return schemes.register(scheme)


def check_supported(config: SchemeConfig, facts: ModelFacts) -> None:
    """Refuse a scheme that cannot enter the model, or would do nothing in it.

    Raises:
        UnsupportedError: the cell of the capability table does not hold; the message gives the reason.
        SchemeConfigError: the config's layers do not exist, or the options would have no effect on this model.
    """
    scheme = schemes.get(config.name)
    place = f"scheme {config.name!r} cannot enter {facts.architecture!r} ({facts.mode})"
    if not facts.causal and not scheme.supports_encoder:
        raise UnsupportedError(f"{place}: {scheme.encoder_refusal}")
    _check_layers(config, scheme, facts)
    reason = scheme.refusal(config, facts)
    if reason is not None:
        raise UnsupportedError(f"{place}: {reason}")


def _check_layers(config: SchemeConfig, scheme: type[Scheme], facts: ModelFacts) -> None:
    if config.layers is None:
        return
    if not scheme.acts_in_layers:
        raise SchemeConfigError(
            f"scheme {config.name!r} enters at the embeddings, so it has no layers to choose from: "
            f"leave out layers={reprlib.repr(list(config.layers))}."
        )
    missing = [layer for layer in config.layers if layer >= facts.num_layers]
    if missing:
        raise SchemeConfigError(
            f"{config.name} option 'layers' names layers {reprlib.repr(missing)}, but the model has layers 0 to "
            f"{facts.num_layers - 1}."
        )


__all__ = [
    "ModelFacts",
    "Scheme",
    "SchemeConfig",
    "SchemeLayer",
    "check_supported",
    "option",
    "register_scheme",
    "schemes",
]

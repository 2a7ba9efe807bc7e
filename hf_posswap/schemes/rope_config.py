"""Options of `rope`, and the options that each of its scalings reads."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import ModelFacts, SchemeConfig, option

OPTIONS_OF_SCALING: dict[str, tuple[str, ...]] = {
    "native": (),
    "none": (),
    "linear": ("factor",),
    "ntk": ("factor",),
    "dynamic": ("factor", "original_length"),
    "yarn": ("factor", "original_length", "beta_fast", "beta_slow", "truncate", "attention_factor"),
    "longrope": ("factor", "original_length", "short_factor", "long_factor", "attention_factor"),
    "llama3": ("factor", "original_length", "low_freq_factor", "high_freq_factor"),
    "proportional": ("factor",),
}
DEFAULT_FACTOR = 4.0
DEFAULT_KEPT = 0.5
BY_LENGTH = ("dynamic", "longrope")
STRETCHED = ("linear", "ntk", "dynamic", "yarn", "longrope", "llama3")
"""Scalings whose factor is the ratio of the new to the old text length. The factor of `proportional` is not."""


@dataclass(frozen=True, kw_only=True)
class RopeConfig(SchemeConfig):
    """Options of `rope`. Each scaling reads the options that `OPTIONS_OF_SCALING` lists for it."""

    name: ClassVar[str] = "rope"
    variant_option: ClassVar[str | None] = "scaling"

    scaling: str = option(
        "native", "How angles are stretched. native: as the model has it, none if it has no RoPE.",
        choices=tuple(OPTIONS_OF_SCALING),
    )  # fmt: skip
    base: float | None = option(None, "Base of the frequencies. None: the model's own, or 10000.", above=1)
    factor: float | None = option(
        None, "How many times longer texts get. None: 4 where the scaling needs one.", minimum=1
    )
    original_length: int | None = option(None, "Train length T. None: the model's.", minimum=2)
    partial_rotary_factor: float | None = option(
        None, "Share of the head dimension that turns. None: that of the model's own RoPE, or all.", above=0, maximum=1
    )
    interleaved: bool = option(False, "Pairs are neighbours (GPT-J); otherwise halves (Llama).")
    frequencies: str = option(
        "all", "Pairs that turn; the others stand still. fope: those that turn once over T at least. chosen: in each "
        "head those that contribute most to the scores, found by calibration.",
        choices=("all", "fope", "chosen"),
    )  # fmt: skip
    kept: float | None = option(None, "chosen: share of a head's pairs that turn. None: 0.5.", above=0, maximum=1)
    fourier_sums: bool = option(
        False, "fope: cos and sin of a pair become sums over the frequencies of all pairs that turn, which learn."
    )
    beta_fast: float = option(32.0, "yarn: dimensions with more turns over T keep their frequency.", above=0)
    beta_slow: float = option(1.0, "yarn: dimensions with fewer turns over T are divided by the factor.", above=0)
    truncate: bool = option(True, "yarn: round the ends of the ramp to whole dimensions.")
    attention_factor: float | None = option(None, "Factor on cos and sin. None: as the scaling's paper says.", above=0)
    low_freq_factor: float = option(1.0, "llama3: T over the longest wavelength that is blended.", above=0)
    high_freq_factor: float = option(4.0, "llama3: T over the shortest wavelength that is blended.", above=0)
    short_factor: tuple[float, ...] | None = option(None, "longrope: divisors of θ for texts up to T.", above=0)
    long_factor: tuple[float, ...] | None = option(None, "longrope: divisors of θ for longer texts.", above=0)

    def validate(self) -> None:
        """Refuse options that the scaling does not read, and missing or contradictory options of the scaling."""
        read = OPTIONS_OF_SCALING[self.scaling]
        for field in dataclasses.fields(self):
            belongs_to_scaling = any(field.name in names for names in OPTIONS_OF_SCALING.values())
            if belongs_to_scaling and field.name not in read and getattr(self, field.name) != field.default:
                readers = [name for name, names in OPTIONS_OF_SCALING.items() if field.name in names]
                raise SchemeConfigError(
                    f"rope option {field.name!r} has no effect with scaling={self.scaling!r}. It is read by scaling "
                    f"{', '.join(readers)}."
                )
        self._check_frequencies()
        needs_more = self.scaling in ("linear", "ntk", "yarn", "llama3")  # a factor of 1 would have no effect
        if needs_more and self.factor is not None and self.factor <= 1:
            raise SchemeConfigError(
                f"rope option 'factor' is {self.factor}; scaling={self.scaling!r} needs factor > 1."
            )
        if self.beta_fast <= self.beta_slow:
            raise SchemeConfigError(f"rope needs beta_fast > beta_slow, not {self.beta_fast} <= {self.beta_slow}.")
        if self.high_freq_factor <= self.low_freq_factor:
            raise SchemeConfigError(
                f"rope needs high_freq_factor > low_freq_factor, not {self.high_freq_factor} <= {self.low_freq_factor}."
            )
        if self.scaling == "longrope" and (self.short_factor is None or self.long_factor is None):
            raise SchemeConfigError(
                "rope with scaling='longrope' needs short_factor and long_factor, lists of numbers."
            )

    def _check_frequencies(self) -> None:
        """Refuse options that the frequencies do not read, and those that `chosen` cannot act with."""
        for name, reader in (("kept", "chosen"), ("fourier_sums", "fope")):
            if getattr(self, name) and self.frequencies != reader:
                raise SchemeConfigError(
                    f"rope option {name!r} has no effect with frequencies={self.frequencies!r}. It is read by "
                    f"frequencies={reader!r}."
                )
        for name in ("interleaved", "keep_native"):
            if self.frequencies == "chosen" and getattr(self, name):
                raise SchemeConfigError(
                    f"rope with frequencies='chosen' lets some of the model's own pairs go on turning, and no others; "
                    f"{name}=True turns others too. Leave {name} out."
                )

    def resolve(self, facts: ModelFacts) -> "RopeConfig":
        """Return the config with the model's base and train length; for `native`, with the model's whole scaling."""
        if facts.native_rope_unread is not None and not self.keep_native:
            return self
        native = facts.native_rope or {"scaling": "none", "base": 10000.0}
        if self.scaling == "native":
            own = {field.name: getattr(self, field.name) for field in dataclasses.fields(SchemeConfig)}
            names = ("interleaved", "frequencies", "kept", "fourier_sums")
            own |= {name: getattr(self, name) for name in names}
            own |= {"base": self.base} if self.base is not None else {}
            share = self.partial_rotary_factor
            own |= {"partial_rotary_factor": share} if share is not None else {}
            return RopeConfig(**(native | own)).resolve(facts)
        values: dict[str, Any] = {"base": self.base or native["base"]}
        if self.frequencies == "chosen":
            values["kept"] = self.kept or DEFAULT_KEPT
        if self.partial_rotary_factor is None:  # `proportional` gives this option another meaning
            same = (self.scaling == "proportional") is (native["scaling"] == "proportional")
            values["partial_rotary_factor"] = native.get("partial_rotary_factor") if same else None
            values["partial_rotary_factor"] = values["partial_rotary_factor"] or 1.0
        read = OPTIONS_OF_SCALING[self.scaling]
        if "factor" in read and self.factor is None and self.scaling not in ("proportional", "longrope"):
            values["factor"] = DEFAULT_FACTOR
        if "original_length" in read and self.original_length is None:
            values["original_length"] = native.get("original_length") or facts.train_length
        return dataclasses.replace(self, **values)

    def rotated(self, head_dim: int) -> int:
        """Return r, the number of rotated dimensions."""
        return head_dim if self.scaling == "proportional" else int(head_dim * (self.partial_rotary_factor or 1))

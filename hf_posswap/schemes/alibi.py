"""ALiBi: a penalty on the scores that grows linearly with distance (Press et al., 2108.12409)."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.biases import Bias, DenseBias, LinearBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, option, register_scheme
from hf_posswap.schemes.curves import Curve, fitted_slopes
from hf_posswap.schemes.relative import bias_by_distance

ENCODER_FORMS = ("symmetric", "offset", "one-sided", "two-slope")


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """Return the paper's slopes m_h, float32, (H,): 2^(−8h/H) for h = 1…H if H is a power of two.

    For any other H, these are the slopes of the next lower power of two, followed by every second slope of the next
    higher power of two. Section 3 of the paper has the first case; the second is from the authors' code.
    They are computed on the device, since a copy to a GPU in each forward would make the CPU wait.
    """
    lower = 1 << (num_heads.bit_length() - 1)
    head = torch.arange(num_heads, device=device)
    halves = torch.where(head < lower, 2 * head + 2, 2 * (head - lower) + 1)  # h, in steps of one half
    return torch.exp2(halves.to(_exact(head.device)) * (-4.0 / lower)).float()


def _exact(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True, kw_only=True)
class AlibiConfig(SchemeConfig):
    """Options of `alibi`."""

    name: ClassVar[str] = "alibi"
    variant_option: ClassVar[str | None] = "form"

    form: str | None = option(
        None, "Shape of the penalty. None: causal in a causal model, symmetric in an encoder.",
        choices=("causal", *ENCODER_FORMS),
    )  # fmt: skip
    trainable: bool = option(False, "Make the slopes parameters, kept positive by learning their logarithm.")
    per_layer: bool = option(False, "With trainable: slopes of their own in each layer.")
    interpolate: bool = option(
        False, "Multiply slopes by T/n in texts of n > T tokens, T the train length (2310.13017)."
    )
    offset: float | None = option(
        None, "Form offset: added to the distance of keys to the right, so that left and right differ. None: 0.5."
    )
    right_ratio: float | None = option(
        None, "Form two-slope: slope to the right over slope to the left. None: 0.5.", minimum=0
    )

    def validate(self) -> None:
        """Refuse options that have no effect with the form."""
        for name, form in (("offset", "offset"), ("right_ratio", "two-slope")):
            if getattr(self, name) is not None and self.form != form:
                raise SchemeConfigError(
                    f"alibi option {name!r} has no effect with form {self.form!r}: set form={form!r}, or leave it out."
                )
        if self.per_layer and not self.trainable:
            raise SchemeConfigError("alibi option 'per_layer' has no effect on fixed slopes: set trainable=True too.")

    def resolve(self, facts: ModelFacts) -> "AlibiConfig":
        """Return the config with a form that fits the kind of attention, and with that form's default options."""
        form = self.form or ("causal" if facts.causal else "symmetric")
        offset = 0.5 if form == "offset" and self.offset is None else self.offset
        ratio = 0.5 if form == "two-slope" and self.right_ratio is None else self.right_ratio
        return dataclasses.replace(self, form=form, offset=offset, right_ratio=ratio)


class AlibiLayer(SchemeLayer):
    """Returns the bias of one layer; holds the logarithms of the slopes if each layer has its own."""

    def __init__(self, scheme: "Alibi") -> None:
        super().__init__()
        self.config = scheme.config
        self.heads = scheme.facts.num_heads
        self.train_length = scheme.facts.train_length
        self.log_slopes = scheme.make_log_slopes() if scheme.config.per_layer else None

    def bias(self, inputs: ScoreInputs) -> Bias:
        """See `SchemeLayer.bias`."""
        if self.log_slopes is None:
            return inputs.prepared
        return alibi_bias(self.log_slopes.float().exp(), inputs.positions, self.config, self.train_length)

    def fit(self, curve: Curve) -> bool:
        """Set each head's slope to the least-squares fit of its curve, if this layer has trainable slopes."""
        if self.log_slopes is None:
            return False
        with torch.no_grad():
            self.log_slopes.copy_(fitted_slopes([curve], unit_penalty(curve.distances, self.heads, self.config)).log())
        return True


def alibi_bias(slopes: Tensor, positions: Positions, config: AlibiConfig, train_length: int) -> Bias:
    """Return the bias of the config's form; if `config.interpolate` is set, with interpolated slopes.

    Args:
        slopes: positive slopes, float32, (H,).
        positions: positions of this forward.
        config: a resolved config.
        train_length: train length T; slopes are interpolated for longer texts.
    """
    if not config.interpolate:
        return _plain_bias(slopes, positions, config)
    positions.require_known()
    shares = train_length / positions.row_lengths().clamp(min=train_length).float()
    known = not (torch.compiler.is_compiling() or shares.is_meta)
    if shares.shape[0] == 1 or (known and (positions.farthest < train_length or positions.rows_alike)):
        return _plain_bias(slopes * shares[0], positions, config)
    bias = _plain_bias(slopes, positions, config)
    return DenseBias(lambda start, stop: bias.rows(start, stop) * shares[..., None, None])


def _plain_bias(slopes: Tensor, positions: Positions, config: AlibiConfig) -> Bias:
    """Return the bias with the given slopes, (H,)."""
    if config.form == "causal":
        if positions.by_index:
            return LinearBias(slopes, positions.distances, positions.query_length, positions.key_length)
        return bias_by_distance(positions, lambda distance: -_outer(slopes, distance))
    return bias_by_distance(positions, lambda distance: _encoder_values(slopes, distance, config))


def unit_penalty(distances: Tensor, num_heads: int, config: AlibiConfig) -> Tensor:
    """Return the penalty (minus the bias) with slope 1 at distances (N,) in the config's form: float32, (H, N)."""
    if config.form == "causal":
        return distances.float().expand(num_heads, -1)
    return -_encoder_values(torch.ones(num_heads, device=distances.device), distances, config)


def _outer(slopes: Tensor, distance: Tensor) -> Tensor:
    return slopes.view(-1, *[1] * distance.dim()) * distance.float()


def _encoder_values(slopes: Tensor, distance: Tensor, config: AlibiConfig) -> Tensor:
    """Return the bias (H, …) of an encoder form at distances; Δ > 0 is a key to the left of its query."""
    if config.form == "symmetric":
        return -_outer(slopes, distance.abs())
    to_the_right = distance < 0
    if config.form == "offset":
        return -_outer(slopes, distance.abs().float() + to_the_right.float() * float(config.offset or 0.0))
    if config.form == "two-slope":
        ratio = torch.where(to_the_right, float(config.right_ratio or 0.0), 1.0)
        return -_outer(slopes, distance.abs().float() * ratio)
    half = slopes.shape[0] // 2
    penalty = -_outer(slopes, distance.abs())
    hidden = torch.stack([to_the_right] * half + [distance > 0] * half)
    return penalty.masked_fill(hidden, float("-inf"))


@register_scheme
class Alibi(Scheme):
    """A bias of −m_h·Δ that is added to the scaled scores, with a fixed slope m_h per head.

    Encoder forms: `symmetric` −m·|Δ| (MosaicBERT, Jina v2); `offset` −m·(|Δ| + o·[Δ < 0]), so that left and right
    differ; `one-sided`, where the first half of the heads attends only to the left and the second half only to the
    right, each half with the slopes of H/2 heads; `two-slope`, with a different slope to the right. The paper covers
    causal models only. These forms follow its authors' later advice; this package chose the constants of `offset` and
    `two-slope`.

    With `interpolate` (Al-Khateeb et al. 2023, 2310.13017) the slopes of a text of n tokens are multiplied by T/n if n
    exceeds the train length T, so that penalties stay in the range of the train length. During generation n grows, so
    the slopes change in each step past T. Each text of a batch has its own n.
    """

    name = "alibi"
    pretty_name = "ALiBi"
    paper = "Press et al. 2022, Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation"
    paper_url = "https://arxiv.org/abs/2108.12409"
    formula = "s − m_h·Δ, m_h = 2^(−8h/H)"
    summary = "A fixed penalty on the scores that grows with distance, at another rate in each head."
    advice = (
        "To read far past the train length at no cost in parameters, memory or speed, where what matters is near. "
        "With `trainable` slopes in each layer it starts from what calibration finds."
    )
    config_class = AlibiConfig
    config: AlibiConfig

    def __init__(self, config: AlibiConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        shared = config.trainable and not config.per_layer
        self.log_slopes = self.make_log_slopes() if shared else None

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse a form that does not fit the kind of attention or the number of heads."""
        assert isinstance(config, AlibiConfig)
        if config.form in ENCODER_FORMS and facts.causal:
            return f"form {config.form!r} is for encoders; a causal model takes form='causal'."
        if config.form == "causal" and not facts.causal:
            return f"form 'causal' is for causal models; an encoder takes one of {', '.join(ENCODER_FORMS)}."
        if config.form == "one-sided" and facts.num_heads % 2:
            return f"form 'one-sided' halves the heads, but there are {facts.num_heads}. Choose form='symmetric'."
        return None

    def symmetric(self) -> bool:
        """See `Scheme.symmetric`."""
        return self.config.form == "symmetric"

    def length_dependent(self) -> bool:
        """See `Scheme.length_dependent`: interpolated slopes depend on the text's length."""
        return self.config.interpolate

    def slopes(self, device: torch.device | None = None) -> Tensor:
        """Return the paper's slopes for this model and form, float32, (H,)."""
        if self.config.form == "one-sided":
            return alibi_slopes(self.facts.num_heads // 2, device).repeat(2)
        return alibi_slopes(self.facts.num_heads, device)

    def make_log_slopes(self) -> nn.Parameter:
        """Return trainable logarithms of the paper's slopes, (H,)."""
        return nn.Parameter(self.slopes().log())

    def prepare(self, positions: Positions) -> Bias | None:
        """Return the bias that all layers share; None if each layer has its own slopes."""
        if self.config.per_layer:
            return None
        learned = self.log_slopes
        slopes = self.slopes(positions.query.device) if learned is None else learned.float().exp()
        return alibi_bias(slopes, positions, self.config, self.facts.train_length)

    def fit(self, curves: list[Curve]) -> bool:
        """Set the slopes to the least-squares fit of all layers' curves, if the layers share trainable slopes."""
        if self.log_slopes is None:
            return False
        with torch.no_grad():
            penalty = unit_penalty(curves[0].distances, self.facts.num_heads, self.config)
            self.log_slopes.copy_(fitted_slopes(curves, penalty).log())
        return True

    def make_layer(self, layer_index: int) -> AlibiLayer:
        """See `Scheme.make_layer`."""
        return AlibiLayer(self)

"""DAPE: a network that adapts a bias to the scores of all heads (Zheng et al., 2405.14722)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.common.score_biases import ScoredPairs, TransformedBias
from hf_posswap.errors import PosSwapError, SchemeConfigError
from hf_posswap.schemes.base import (
    ModelFacts,
    Scheme,
    SchemeConfig,
    SchemeLayer,
    ScoreInputs,
    option,
    register_scheme,
    schemes,
)
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.support import check_supported
from hf_posswap.schemes.texts import entry_text, parse_entry


@dataclass(frozen=True, kw_only=True)
class DapeConfig(SchemeConfig):
    """Options of `dape`."""

    name: ClassVar[str] = "dape"

    over: str = option("kerple", "The bias that is adapted: a scheme as text, such as alibi or fire:threshold=512.")
    width: int = option(32, "Hidden units of the network.", minimum=1)
    seed: int = option(0, "Seed of the network's random start.", minimum=0)

    @property
    def under(self) -> SchemeConfig:
        """The config of the bias that is adapted."""
        return parse_entry(self.over)

    def validate(self) -> None:
        """Write `over` in its shortest form; refuse options in it that belong to this scheme."""
        under = self.under
        if under != under.anywhere() or under.keep_native:
            raise SchemeConfigError(
                f"dape option 'over' is {self.over!r}: layers, window and keep_native are options of dape itself. "
                "Give them beside over, as in dape:over=alibi:layers=0+1."
            )
        object.__setattr__(self, "over", entry_text(under))

    def resolve(self, facts: ModelFacts) -> "DapeConfig":
        """Fill in what the options of `over` take from the model."""
        return dataclasses.replace(self, over=entry_text(self.under.resolve(facts)))


class DapeLayer(SchemeLayer):
    """The network of one layer over the bias of another scheme's layer.

    The first layer of the network starts as torch's linear layers do, the last one at zero: the bias is unchanged.

    Args:
        under: the layer of the other scheme.
        heads: number of heads H.
        width: number of hidden units.
        generator: random generator for the initial values.
    """

    def __init__(self, under: SchemeLayer, heads: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.under = under
        self.hidden_weight, self.hidden_bias = (
            nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * (2 * heads) ** -0.5)
            for shape in ((width, 2 * heads), (width,))
        )
        self.output_weight = nn.Parameter(torch.zeros(heads, width))

    def bias(self, inputs: ScoreInputs) -> Bias:
        """Return the other scheme's bias and what the network adds."""
        under, positions = self.under.bias(inputs), inputs.positions
        assert under is not None, "the scheme refuses schemes without a bias"
        return TransformedBias(
            pairs=ScoredPairs(inputs.q, inputs.k, inputs.scaling, positions.offset, positions.causal),
            under=under,
            hidden_weight=self.hidden_weight.float(),
            hidden_bias=self.hidden_bias.float(),
            output_weight=self.output_weight.float(),
        )

    def content_groups(self, distances: Tensor) -> Tensor | None:
        """See `SchemeLayer.content_groups`."""
        return self.under.content_groups(distances)

    def fit(self, curve: Curve) -> bool:
        """Fit the other scheme's layer; the network stays unchanged."""
        return self.under.fit(curve)


@register_scheme
class Dape(Scheme):
    """Scores s + b + f([s; b]): b is the bias of another scheme (`over`) and f a network over all heads of a pair.

    f has one hidden layer of leaky ReLUs and reads, for each pair of query and key, the scaled scores s and the bias b
    of all heads. In half precision it still computes in float32. Its last layer starts at zero, so that a swapped model
    starts with b. The constant that the authors' last layer adds to each head is left out, because softmax does not see
    it. With a softcap, f reads the scores after it.

    `over` is a scheme as text, with options in parentheses: `dape:over=alibi`, `dape:over=(t5:num_buckets=16)`. It is
    a scheme that adds a bias and does nothing else. `layers`, `window` and `keep_native` are options of `dape`.
    Calibration fits b. In an encoder, b has its own encoder form.

    Scores are written out, a block of queries at a time, and f costs 3·H·`width` multiplications for each pair.
    """

    name = "dape"
    pretty_name = "DAPE"
    paper = "Zheng et al. 2024, DAPE: Data-Adaptive Positional Encoding for Length Extrapolation"
    paper_url = "https://arxiv.org/abs/2405.14722"
    formula = "s + b + f([s; b]) over all heads, b the bias of another scheme"
    summary = "A small network adapts the bias of another scheme to the scores."
    advice = (
        "On top of a bias that works, where there is a budget to heal and speed matters less: it starts as that bias "
        "and learns when to overrule it."
    )
    config_class = DapeConfig
    config: DapeConfig

    def __init__(self, config: DapeConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        under = config.under
        self.under = under.scheme_type()(under, facts)
        self.calibration_refusal = self.under.calibration_refusal

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse `over` unless it is a scheme that adds a bias and does nothing else."""
        assert isinstance(config, DapeConfig)
        reason = _unfit(config.under, facts)
        if reason is None:
            return None
        fit = [scheme.name for scheme in schemes if _unfit(scheme.config_class(), facts) is None]
        found = f"it needs a bias to adapt, and scheme {config.under.name!r} {reason}"
        return f"{found}. Schemes that fit: {', '.join(sorted(fit))}."

    def longest_position(self) -> int | None:
        """See `Scheme.longest_position`."""
        return self.under.longest_position()

    def made_for(self) -> int | None:
        """See `Scheme.made_for`."""
        return self.under.made_for()

    def symmetric(self) -> bool:
        """See `Scheme.symmetric`."""
        return self.under.symmetric()

    def length_dependent(self) -> bool:
        """See `Scheme.length_dependent`."""
        return self.under.length_dependent()

    def prepare(self, positions: Positions) -> Any:
        """Return what the other scheme prepares."""
        return self.under.prepare(positions)

    def prepare_at(self, positions: Positions, share: Tensor) -> Any:
        """See `Scheme.prepare_at`."""
        return self.under.prepare_at(positions, share)

    def fit(self, curves: list[Curve]) -> bool:
        """Fit what the layers of the other scheme share."""
        return self.under.fit(curves)

    def make_layer(self, layer_index: int) -> DapeLayer:
        """See `Scheme.make_layer`."""
        generator = torch.Generator().manual_seed(self.config.seed + layer_index)
        return DapeLayer(self.under.make_layer(layer_index), self.facts.num_heads, self.config.width, generator)


def _unfit(under: SchemeConfig, facts: ModelFacts) -> str | None:
    """Return why a scheme cannot be adapted, as the end of a sentence; None if it can."""
    if under.name == DapeConfig.name:
        return "is dape again"
    if not under.scheme_type().acts_in_layers:
        return "acts at the embeddings"
    try:
        under = under.resolve(facts)
        check_supported(under, facts)
    except PosSwapError as error:
        return f"does not fit the model ({error})"
    scheme = under.scheme_type()(under, facts)
    layer = scheme.make_layer(0)
    if layer.transforms or layer.mixes_values or layer.state_size:
        return "does more than add a bias: it changes queries and keys, adds to the values, or keeps a state"
    positions = Positions(torch.arange(2)[None], torch.arange(2)[None], 0, facts.causal)
    q, k = (torch.zeros(1, heads, 2, facts.head_dim) for heads in (facts.num_heads, facts.num_key_value_heads))
    bias = layer.bias(ScoreInputs(q, k, positions, scheme.prepare(positions), 1.0, (q, k)))
    if bias is None:
        return "adds no bias"
    return "computes its bias from the scores" if bias.reads_scores else None

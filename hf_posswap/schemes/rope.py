"""RoPE and its scalings: rotates q and k by angles that grow with the position (Su et al., 2104.09864)."""

from typing import Any

import torch
from torch import Tensor

from hf_posswap.common.positions import Positions
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import rope_frequencies as frequencies
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig, register_scheme
from hf_posswap.schemes.rope_config import BY_LENGTH, OPTIONS_OF_SCALING, STRETCHED, RopeConfig
from hf_posswap.schemes.rope_layers import (
    ChosenPairsLayer,
    RopeLayer,
    Rotation,
    Rotations,
    SummedFrequenciesLayer,
)
from hf_posswap.schemes.stock_forms import RotaryAngles

BY_LENGTH_NOTE = (
    "Stock transformers takes these angles from the longest text of a batch and does not turn cached keys anew: "
    "batches of unequal texts, and generation past the train length, come out differently there."
)


@register_scheme
class Rope(Scheme):
    """Rotates pairs of dimensions of q and k by pos·θ_n, so that scores depend on the distance.

    `frequencies=fope` does not rotate pairs that make less than one full turn over the train length T, as in Fourier
    Position Embedding (Hua et al. 2024, 2412.17739), because training covers only a part of their turn. The
    frequencies before the scaling decide which pairs these are. HoPE (Chen et al. 2024, 2410.21216) keeps the same high
    frequencies, and p-RoPE (`scaling=proportional`) a given share of them.

    `fourier_sums` is the other half of FoPE (equation 13): cos and sin of each pair that turns become sums over the
    frequencies of all of them, cos(pos·θ_m) + Σ_ω a_ω·cos(pos·θ_ω), with coefficients of their own for cos and sin, in
    each layer and key head, as in the authors' code. There the coefficients are drawn from a normal distribution and do
    not learn, because the model is trained from scratch with them. Here they start at 0 and learn in healing, so that a
    swapped model starts as `frequencies=fope` without sums. The authors' code also divides by the sum of the
    coefficients; equation 13 does not, and neither does this. With sums, scores depend on both positions and not only
    on their distance: a product of two sums has terms of two different frequencies. And q and k change their lengths.

    `frequencies=chosen` is the partial RoPE of MHA2MLA (Ji et al. 2025, 2502.14837, section 3.1, S_2-norm): in each
    head those pairs go on turning whose queries and keys have the largest product of mean norms, ‖q‖·‖k‖, a bound on
    their part of the scores. All others stand still. As in the authors' code, the means are taken over all positions
    before the product, and products are summed over the query heads that share keys. Calibration measures the norms in
    the stock model, of every fourth query and of all keys; before it a forward is refused. The model must have RoPE,
    because a model without it has learnt to turn no pair.

    Scalings: `linear` (position interpolation, 2306.15595), `ntk` (base·s^(r/(r−2))), `dynamic` (NTK by the text's
    length), `yarn` (2309.00071), `longrope` (2402.13753), `llama3`, `proportional` (p-RoPE, 2410.06205).
    """

    name = "rope"
    pretty_name = "RoPE"
    paper = "Su et al. 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding"
    paper_url = "https://arxiv.org/abs/2104.09864"
    formula = "pairs of q and k turned by pos·θ_n, θ_n = base^(−2n/d)"
    summary = "Queries and keys turn by an angle that grows with position; scores depend on the distance."
    advice = (
        "To keep a RoPE model's own mechanism and stretch it by a scaling, or to give a model with a table the "
        "mechanism of today's models."
    )
    config_class = RopeConfig
    config: RopeConfig
    stock_form = RotaryAngles

    def __init__(self, config: SchemeConfig, facts: ModelFacts) -> None:
        super().__init__(config, facts)
        if self.config.fourier_sums:
            self.calibration_refusal = (
                "calibration fits biases by distance, and sums of frequencies depend on both positions. Heal the model."
            )

    @classmethod
    def refusal(cls, config: SchemeConfig, facts: ModelFacts) -> str | None:
        """Refuse an unknown RoPE with options, an odd number of rotated dimensions, and lists of a wrong length."""
        assert isinstance(config, RopeConfig)
        if facts.native_rope_unread is not None and not config.keep_native:
            if config.anywhere() == RopeConfig():
                return None
            return (
                f"the model has a RoPE of its own that scheme 'rope' cannot read, so it cannot be scaled: "
                f"{facts.native_rope_unread}. Scheme 'rope' without options keeps it as it is."
            )
        rotated = config.rotated(facts.head_dim)
        if rotated < 2 or rotated % 2:
            return (
                f"dimensions turn in pairs, but {rotated} of the head dimension {facts.head_dim} would turn "
                f"(partial_rotary_factor={config.partial_rotary_factor}). It must be even and at least 2."
            )
        if config.frequencies == "chosen":
            return _no_choice(config, facts)
        if config.fourier_sums and not frequencies.turning_pairs(config, facts):
            length = frequencies.learnt_length(config, facts)
            return f"fourier_sums needs a pair that turns once over T, and none does over {length} tokens."
        if config.scaling in ("ntk", "dynamic") and rotated == 2:
            return f"scaling {config.scaling!r} needs more than 2 rotated dimensions."
        for name in ("short_factor", "long_factor"):
            values = getattr(config, name)
            if values is not None and len(values) != rotated // 2:
                return f"{name} has {len(values)} entries; it needs one for each of the {rotated // 2} pairs."
        return None

    def made_for(self) -> int:
        """See `Scheme.made_for`: the train length, times the factor of a scaling that stretches texts.

        Angles exist for all positions, but quality drops past this length.
        """
        if self.config.scaling not in STRETCHED:
            return self.facts.train_length
        return round((self.config.original_length or self.facts.train_length) * (self.config.factor or 1))

    def length_dependent(self) -> bool:
        """See `Scheme.length_dependent`: the angles of dynamic and longrope depend on the text's length."""
        return self.config.scaling in BY_LENGTH

    def keeps_raw_keys(self) -> bool:
        """See `Scheme.keeps_raw_keys`."""
        return self.length_dependent() and not self._left_alone()

    def steady_dimensions(self) -> Tensor:
        """See `Scheme.steady_dimensions`: first the dimensions without rotation, then the pairs by rising frequency."""
        head_dim, rotated = self.facts.head_dim, self.config.rotated(self.facts.head_dim)
        rates = self.frequencies(torch.tensor([[self.facts.train_length]])).flatten()
        pairs = torch.arange(rotated).view(-1, 2) if self.config.interleaved else torch.arange(rotated).view(2, -1).t()
        turning = pairs[rates.argsort(stable=True)].flatten()
        return torch.cat((torch.arange(rotated, head_dim), turning))

    def turns_keys(self) -> bool:
        """See `Scheme.turns_keys`."""
        return True

    def enters_as_angles(self) -> bool:
        """See `Scheme.enters_as_angles`: true if the pairs are those of the model, and keys are cached rotated."""
        if self.config.keep_native or self.config.interleaved or self.keeps_raw_keys() or self._by_head():
            return False
        if self.facts.native_rope is None:
            return self.facts.native_rope_unread is not None
        turning = RopeConfig(**self.facts.native_rope).rotated(self.facts.head_dim)
        return self.config.rotated(self.facts.head_dim) == turning

    def _by_head(self) -> bool:
        """Return whether heads turn by angles of their own."""
        return self.config.frequencies == "chosen" or self.config.fourier_sums

    def is_native(self) -> bool:
        """See `Scheme.is_native`."""
        return self.enters_as_angles() and (self.facts.native_rope is None or self._says_native())

    def _says_native(self) -> bool:
        """Return whether the options equal those of the model's own RoPE."""
        if self.facts.native_rope is None:
            return False
        native = RopeConfig(**self.facts.native_rope).resolve(self.facts)
        return self.config.anywhere() == native

    def _left_alone(self) -> bool:
        """Return whether the model keeps its own rotation: the options equal it, and `turns_whole_heads` is False."""
        return not self.facts.turns_whole_heads and self._says_native()

    def frequencies(self, lengths: Tensor) -> Tensor:
        """Return θ_n, float32, (r/2,); if the scaling depends on the text lengths (B, 1), (B, r/2)."""
        theta = self._scaled_frequencies(lengths)
        if self.config.frequencies != "fope":
            return theta
        return theta.masked_fill(~frequencies.turn_once(self.config, self.facts, lengths.device), 0.0)

    def _scaled_frequencies(self, lengths: Tensor) -> Tensor:
        """Return θ_n of the scaling, for all pairs, see `frequencies`."""
        config, rotated = self.config, self.config.rotated(self.facts.head_dim)
        device = lengths.device
        assert config.base is not None
        if config.scaling == "linear":
            return frequencies.plain_frequencies(rotated, config.base, device=device) / (config.factor or 1.0)
        if config.scaling == "ntk":
            return frequencies.plain_frequencies(rotated, self._stretched_base(), device=device)
        if config.scaling == "dynamic":
            return frequencies.dynamic_frequencies(rotated, config, lengths)
        if config.scaling == "yarn":
            return frequencies.yarn_frequencies(rotated, config, device)
        if config.scaling == "longrope":
            return frequencies.longrope_frequencies(rotated, config, lengths)
        if config.scaling == "llama3":
            return frequencies.llama3_frequencies(rotated, config, device)
        if config.scaling == "proportional":
            return frequencies.proportional_frequencies(rotated, config, device)
        return frequencies.plain_frequencies(rotated, config.base, device=device)

    def rotation(self, positions: Tensor, theta: Tensor, share: Tensor | None = None) -> Rotation:
        """Return cos and sin for positions (B|1, L) and θ (r/2,) or (B, r/2); in a ramp, `share` scales the angles."""
        angles = positions[..., None].float() * (theta if theta.dim() == 1 else theta[:, None])
        factor: Any = frequencies.attention_factor(self.config)
        if share is not None:
            angles, factor = angles * share, factor**share
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        if isinstance(factor, float) and factor == 1.0:  # a product with 1.0 would change nothing
            return Rotation(cos, sin)
        return Rotation(cos * factor, sin * factor)

    def prepare(self, positions: Positions) -> Rotations:
        """Return cos and sin for this forward, which all layers share."""
        return self.prepare_at(positions, None)

    def prepare_at(self, positions: Positions, share: Tensor | None) -> Rotations:
        """See `Scheme.prepare_at`: the share scales every angle; None leaves the angles unscaled.

        Returns:
            The rotations; None for the scaling `native` if the model's own angles are unknown and stay in place.
        """
        if self.config.scaling == "native":
            return None  # type: ignore[return-value]  # no layer reads the result: the model computes its own angles
        if self.keeps_raw_keys():
            positions.require_known()
        # Other scalings read the device of the lengths only.
        theta = self.frequencies(positions.row_lengths() if self.length_dependent() else positions.query)
        query = self.rotation(positions.query, theta, share)
        if self.keeps_raw_keys():
            return Rotations(query, self.rotation(positions.key, theta, share), share=share)
        return Rotations(query, None, self._step(query) if positions.query_length == 1 else None, share)

    def _step(self, rotation: Rotation) -> Rotation | None:
        """Return `Rotations.step`; None also if the model rotates by itself, and while a graph is traced."""
        cos, sin = rotation
        whole = 2 * cos.shape[-1] == self.facts.head_dim and not self.config.interleaved
        alone = self.facts.native_rope is not None or self._by_head()
        if not whole or alone or torch.compiler.is_compiling():
            return None
        return Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))

    def make_layer(self, layer_index: int) -> RopeLayer:
        """See `Scheme.make_layer`."""
        config, facts = self.config, self.facts
        if config.frequencies == "chosen":
            kept, factor = frequencies.kept_pairs(config, facts), frequencies.attention_factor(config)
            return ChosenPairsLayer(kept, facts.num_key_value_heads, facts.head_dim // 2, factor)
        if config.fourier_sums:
            turning = frequencies.turning_pairs(config, facts)
            return SummedFrequenciesLayer(config.interleaved, turning, facts.num_key_value_heads)
        return RopeLayer(config.interleaved)

    def as_stock(self) -> RotaryAngles:
        """See `Scheme.as_stock`."""
        self._check_alike_in_all_layers()
        config = self.config
        if config.frequencies != "all":
            raise UnsupportedError(
                f"stock models turn all pairs, not those of frequencies={config.frequencies!r}; frequencies='all' "
                "could be exported, and scaling='proportional' with a share of the pairs."
            )
        if config.interleaved:
            raise UnsupportedError("stock models turn halves, not neighbours; interleaved=False could be exported.")
        if config.partial_rotary_factor != 1 and config.scaling != "proportional":
            raise UnsupportedError(
                f"stock models turn all dimensions of a head, not a share of {config.partial_rotary_factor}; "
                "scaling='proportional' with such a share could be exported."
            )
        options: dict[str, Any] = {"scaling": config.scaling, "base": config.base}
        options |= {name: getattr(config, name) for name in OPTIONS_OF_SCALING[config.scaling]}
        if config.scaling == "ntk":
            options = {"scaling": "none", "base": self._stretched_base()}
        elif config.scaling == "proportional":
            options["partial_rotary_factor"] = config.partial_rotary_factor
        elif config.scaling == "longrope":
            options["attention_factor"] = frequencies.attention_factor(config)
        note = BY_LENGTH_NOTE if self.length_dependent() else None
        return RotaryAngles(options=options, longest=self.made_for(), note=note)

    def _check_alike_in_all_layers(self) -> None:
        """Refuse options with which layers have different angles, or with which q and k are rotated twice.

        Raises:
            UnsupportedError: `keep_native` is set, or only some layers have the options.
        """
        if self.config.keep_native:
            raise UnsupportedError("no stock model turns q and k twice; keep_native=False could be exported.")
        native = RopeConfig().resolve(self.facts)
        if self.config.layers is not None and self.config.anywhere() != native:
            raise UnsupportedError(
                f"stock models have one RoPE for all layers, not another one in layers {list(self.config.layers)}; "
                "a scaling without layers= could be exported, and scheme none with layers=."
            )

    def _stretched_base(self) -> float:
        """Return the base of the scaling `ntk`: base·s^(r/(r − 2))."""
        rotated = self.config.rotated(self.facts.head_dim)
        assert self.config.base is not None
        assert self.config.factor is not None
        return self.config.base * self.config.factor ** (rotated / (rotated - 2))


def _no_choice(config: RopeConfig, facts: ModelFacts) -> str | None:
    """Return why a model cannot choose which of its pairs go on turning, or None if it can."""
    pairs = facts.head_dim // 2
    if facts.native_rope is None:
        return (
            "frequencies='chosen' lets those of the model's own pairs turn that contribute most to the scores, and a "
            "model without RoPE has learnt to turn none. scaling='proportional' with partial_rotary_factor turns a "
            "share of the pairs."
        )
    if config.rotated(facts.head_dim) != facts.head_dim:
        return (
            f"frequencies='chosen' chooses among all pairs of a head, and partial_rotary_factor="
            f"{config.partial_rotary_factor} leaves some out. The option 'kept' says how many turn."
        )
    if not frequencies.kept_pairs(config, facts):
        return f"kept={config.kept} of {pairs} pairs is none; {1 / pairs:.3g} keeps one."
    return None

"""The rotary angles of a stock model: read from its config, and checked against what its rotary module returns."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures.discovery import head_dim_of, number_of, rotary_modules, stock_class_of
from hf_posswap.positions import Positions
from hf_posswap.schemes.base import ModelFacts
from hf_posswap.schemes.rope import OPTIONS_OF_SCALING, Rope, RopeConfig

OPTION_OF_KEY = {
    "rope_theta": "base",
    "factor": "factor",
    "original_max_position_embeddings": "original_length",
    "partial_rotary_factor": "partial_rotary_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
}
"""transformers' names of RoPE parameters, and ours."""
WIDE_LAYERS = "full_attention"
"""transformers' name of layers without a window, in configs that name kinds of layers."""
LAYOUTS = ("halves", "interleaved", "once")
"""How a family writes the angles θ_0, θ_1, … of a head: θ_0 θ_1 … θ_0 θ_1 …; θ_0 θ_0 θ_1 θ_1 …; or θ_0 θ_1 …."""
MEASURED = 8
"""Positions at which angles are compared."""


@dataclass(frozen=True)
class RotarySeam:
    """The rotary angles of a model.

    Attributes:
        options: of a `RopeConfig` that gives the same angles; None if there is none, see `unread`.
        layout: how the family writes angles, one of `LAYOUTS`; None if `options` is.
        unread: why the angles could not be read, or None.
        wide_only: whether layers with a sliding window have angles of their own; `options` are those of the others.
    """

    options: dict[str, Any] | None
    layout: str | None
    unread: str | None = None
    wide_only: bool = False

    @property
    def plain(self) -> bool:
        """Whether all layers have the same known angles, written by halves: stock configs can say others."""
        return self.options is not None and self.layout == "halves" and not self.wide_only


_KNOWN: dict[tuple[type, str], RotarySeam] = {}


def find_rotary(base: Any) -> RotarySeam | None:
    """Return the rotary angles of a base model, or None if it has none."""
    modules = rotary_modules(base)
    if not modules:
        return None
    kind, config = stock_class_of(modules[0][1]), base.config
    key = (kind, json.dumps(config.to_dict(), sort_keys=True, default=str))
    if key not in _KNOWN:
        with torch.no_grad(), torch.device("cpu"):  # a model may be under construction without weights
            _KNOWN[key] = _read(kind, config)
    return _KNOWN[key]


def _read(kind: type, config: Any) -> RotarySeam:
    parameters = getattr(config, "rope_parameters", None)
    nested = isinstance(parameters, dict) and isinstance(parameters.get(WIDE_LAYERS), dict)
    if nested:
        parameters = parameters[WIDE_LAYERS]  # type: ignore[index]  # `nested` says that it is a dict
    if not isinstance(parameters, dict):
        return RotarySeam(None, None, "its config has no rope_parameters", nested)
    kinds = [name for name, value in parameters.items() if isinstance(value, dict)]
    if kinds:
        return RotarySeam(None, None, f"its layers are of kinds that are not known: {', '.join(kinds)}", True)
    options = options_of(parameters, config)
    if isinstance(options, str):
        return RotarySeam(None, None, options, nested)
    try:
        stock = _angles_of(kind, config, WIDE_LAYERS if nested else None)
    except Exception as error:  # whatever a family's module does not like is a reason, not a crash
        return RotarySeam(None, None, f"its {kind.__name__} cannot be run alone: {error}", nested)
    return _matched(stock, options, config, nested)


def options_of(parameters: dict[str, Any], config: Any) -> dict[str, Any] | str:
    """Return `rope_parameters` as options of `RopeConfig`, or why they cannot be written so."""
    given = {key: value for key, value in parameters.items() if value is not None}
    scaling = given.pop("rope_type", "default").replace("default", "none")
    unknown = sorted(set(given) - set(OPTION_OF_KEY))
    if scaling not in OPTIONS_OF_SCALING or unknown:
        what = f"parameters {unknown}" if unknown else f"rope_type {scaling!r}"
        return (
            f"its rope_parameters {parameters} have {what} that scheme 'rope' does not know. Known rope_type: "
            f"default, {', '.join(OPTIONS_OF_SCALING)}; parameters: {', '.join(OPTION_OF_KEY)}"
        )
    if scaling == "dynamic":
        # transformers reads the train length of this scaling from the config, not from rope_parameters.
        given["original_max_position_embeddings"] = config.max_position_embeddings
    read = (*OPTIONS_OF_SCALING[scaling], "base", *(("partial_rotary_factor",) if scaling == "proportional" else ()))
    options = {OPTION_OF_KEY[key]: value for key, value in given.items() if OPTION_OF_KEY[key] in read}
    return {"scaling": scaling} | options


def _angles_of(kind: Any, config: Any, layer_type: str | None) -> tuple[Tensor, Tensor]:
    """Return cos and sin (L, w) that a rotary module, made anew from the config on the CPU, gives short texts."""
    module = kind(config=config)
    arguments: list[Any] = [torch.zeros(1, MEASURED, 1, dtype=torch.float32), torch.arange(MEASURED).unsqueeze(0)]
    angles = module(*arguments, *(() if layer_type is None else (layer_type,)))
    if isinstance(angles, Tensor):
        return angles[0].real.float(), angles[0].imag.float()
    return angles[0][0].float(), angles[1][0].float()


def _matched(stock: tuple[Tensor, Tensor], options: dict[str, Any], config: Any, nested: bool) -> RotarySeam:
    """Return the layout and the share of dimensions with which our angles are the stock ones."""
    width = stock[0].shape[-1]
    heads = number_of(config, "num_attention_heads")
    head_dim = head_dim_of(None, config, heads)
    steps = torch.arange(MEASURED).unsqueeze(0)
    for layout in LAYOUTS:
        turned = 2 * width if layout == "once" else width
        if turned > head_dim:
            continue
        tried = dict(options)
        if options["scaling"] != "proportional" and turned != head_dim:
            tried["partial_rotary_factor"] = turned / head_dim
        facts = ModelFacts("", 1, heads, heads, head_dim, 1, config.max_position_embeddings, True, "rope")
        try:
            rope = Rope(RopeConfig(**tried).resolve(facts), facts)
            ours = rope.prepare(Positions(steps, steps, 0, True)).query
        except Exception as error:  # options that are not RoPE's in any layout are a reason, not a crash
            return RotarySeam(None, None, f"its rope_parameters cannot be read: {error}", nested)
        if all(
            torch.allclose(written(mine[0, 0], layout), its, atol=1e-5) for mine, its in zip(ours, stock, strict=True)
        ):
            return RotarySeam(tried, layout, wide_only=nested)
    return RotarySeam(None, None, "its rotary module gives other angles than its rope_parameters say", nested)


def written(values: Tensor, layout: str) -> Tensor:
    """Return one value for each pair of dimensions (…, r/2) as a family writes it: (…, r), or (…, r/2) for "once"."""
    if layout == "halves":
        return torch.cat((values, values), dim=-1)
    return values.repeat_interleave(2, dim=-1) if layout == "interleaved" else values

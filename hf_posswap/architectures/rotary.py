"""The rotary angles of a stock model: read from its config, and checked against what its rotary module returns."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures.discovery import head_dim_of, number_of, rotary_modules, stock_class_of, stock_config
from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import ModelFacts
from hf_posswap.schemes.rope import Rope
from hf_posswap.schemes.rope_config import OPTIONS_OF_SCALING, RopeConfig
from hf_posswap.schemes.rope_layers import Rotation

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
"""RoPE parameters: their names in transformers and in `RopeConfig`."""
WIDE_LAYERS = "full_attention"
"""The name of layers without a window in configs that name kinds of layers."""
LAYOUTS = ("halves", "interleaved", "once")
"""How a family writes the angles θ_0, θ_1, … of a head: θ_0 θ_1 … θ_0 θ_1 …; θ_0 θ_0 θ_1 θ_1 …; or θ_0 θ_1 …."""
MEASURED = 8
"""Number of positions at which angles are compared, in a short text and in one beyond the train length."""


@dataclass(frozen=True)
class RotarySeam:
    """The rotary angles of a model.

    Attributes:
        options: options of a `RopeConfig` with the same angles; None if there is none, see `unread`.
        layout: how the family writes angles, one of `LAYOUTS`; None if `options` is.
        unread: why the angles could not be read, or None.
        wide_only: whether layers with a sliding window have angles of their own; `options` are those of the others.
        width: w, if the rotary module returns a pair (cos, sin) of (B, L, w) in the hidden states' dtype for positions
            (B, L), and all layers get it; otherwise None.
    """

    options: dict[str, Any] | None
    layout: str | None
    unread: str | None = None
    wide_only: bool = False
    width: int | None = None

    @property
    def plain(self) -> bool:
        """Whether all layers have the same known angles, written by halves: then a stock config can express others."""
        return self.options is not None and self.layout == "halves" and not self.wide_only


_KNOWN: dict[tuple[type, str], RotarySeam] = {}


def find_rotary(base: Any) -> RotarySeam | None:
    """Return the rotary angles of a base model, or None if it has none."""
    modules = rotary_modules(base)
    if not modules:
        return None
    kind, config = stock_class_of(modules[0][1]), stock_config(base.config)
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
    texts = _texts(config, options)
    try:
        stock = [_angles_of(kind, config, WIDE_LAYERS if nested else None, text) for text in texts]
    except Exception as error:  # any error of a family's module is a reason for refusal, not a crash
        return RotarySeam(None, None, f"its {kind.__name__} cannot be run alone: {error}", nested)
    seam = _matched(texts, stock, options, config, nested)
    return seam if nested or seam.options is None else replace(seam, width=_width_of_pair(kind, config))


def options_of(parameters: dict[str, Any], config: Any) -> dict[str, Any] | str:
    """Return `rope_parameters` as options of `RopeConfig`, or why they cannot be written so.

    Entries that the scaling does not read are ignored: the angles themselves are compared afterwards.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    scaling = given.get("rope_type", given.get("type", "default"))  # `type` is what transformers 4 wrote
    scaling = "none" if scaling == "default" else scaling
    if scaling not in OPTIONS_OF_SCALING:
        return (
            f"its rope_parameters {parameters} have rope_type {scaling!r} that scheme 'rope' does not know. Known: "
            f"default, {', '.join(OPTIONS_OF_SCALING)}"
        )
    if scaling == "dynamic":
        # transformers reads the train length of this scaling from the config, not from rope_parameters.
        given["original_max_position_embeddings"] = config.max_position_embeddings
    if scaling in ("yarn", "longrope"):
        given |= _inferred(scaling, given, config)
    if scaling in ("linear", "yarn", "llama3") and given.get("factor") == 1 and "attention_factor" not in given:
        scaling = "none"
    read = (*OPTIONS_OF_SCALING[scaling], "base", *(("partial_rotary_factor",) if scaling == "proportional" else ()))
    options = {OPTION_OF_KEY[key]: value for key, value in given.items() if OPTION_OF_KEY.get(key) in read}
    return {"scaling": scaling} | options


def _inferred(scaling: str, given: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return the options of yarn and longrope that transformers infers where `rope_parameters` do not give them."""
    original = given.get("original_max_position_embeddings", config.max_position_embeddings)
    factor = given.get("factor", config.max_position_embeddings / original)
    # longrope uses the factor for its temperature only, which is 1 for factors up to 1.
    inferred = {"factor": max(factor, 1.0) if scaling == "longrope" else factor}
    scales = [given.get(name) for name in ("mscale", "mscale_all_dim")]
    if scaling == "yarn" and all(scales) and factor > 1:
        # Two temperatures, as in DeepSeek: the part that both apply to all dimensions cancels.
        over, under = (0.1 * scale * math.log(factor) + 1 for scale in scales if scale is not None)
        inferred["attention_factor"] = given.get("attention_factor", over / under)
    return inferred


def _texts(config: Any, options: dict[str, Any]) -> list[Tensor]:
    """Return the positions (1, `MEASURED`) of a short text, and of one whose last token is beyond the train length."""
    steps = torch.arange(MEASURED).unsqueeze(0)
    far = steps.clone()
    far[0, -1] = 2 * max(config.max_position_embeddings, options.get("original_length") or 0)
    return [steps, far]


def _angles_of(kind: Any, config: Any, layer_type: str | None, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin (L, w) that a rotary module, made anew from the config on the CPU, gives a text's tokens."""
    module = kind(config=config)
    arguments: list[Any] = [torch.zeros(1, MEASURED, 1, dtype=torch.float32), text]
    angles = module(*arguments, *(() if layer_type is None else (layer_type,)))
    if isinstance(angles, Tensor):
        return angles[0].real.float(), angles[0].imag.float()
    return angles[0][0].float(), angles[1][0].float()


def _width_of_pair(kind: Any, config: Any) -> int | None:
    """Return the last size of cos and sin if a rotary module returns the pair that `RotarySeam.width` describes."""
    module, width = kind(config=config), None
    for batch, dtype in ((1, torch.float32), (2, torch.bfloat16)):
        positions = torch.arange(MEASURED).expand(batch, -1)
        angles = module(torch.zeros(batch, MEASURED, 1, dtype=dtype), positions)
        if not isinstance(angles, tuple) or len(angles) != 2:
            return None
        width = angles[0].shape[-1]
        if any(part.dtype != dtype or part.shape != (batch, MEASURED, width) for part in angles):
            return None
    return width


def _matched(
    texts: list[Tensor], stock: list[tuple[Tensor, Tensor]], options: dict[str, Any], config: Any, nested: bool
) -> RotarySeam:
    """Return the layout and the share of dimensions for which our angles equal the stock ones."""
    width = stock[0][0].shape[-1]
    heads = number_of(config, "num_attention_heads")
    head_dim = head_dim_of(None, config, heads)
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
            ours = [rope.prepare(Positions(text, text, 0, True)).query for text in texts]
        except Exception as error:  # options that no layout accepts are a reason for refusal, not a crash
            return RotarySeam(None, None, f"its rope_parameters cannot be read: {error}", nested)
        if all(_alike(mine, its, layout) for mine, its in zip(ours, stock, strict=True)):
            return RotarySeam(tried, layout, wide_only=nested)
    return RotarySeam(None, None, "its rotary module gives other angles than its rope_parameters say", nested)


def _alike(ours: Rotation, stock: tuple[Tensor, Tensor], layout: str) -> bool:
    """Return whether cos and sin of a text equal the stock ones; its last token, which may be far away, is left out.

    One unit in the last place of a frequency changes the angle of a far token by much.
    """
    return all(
        torch.allclose(written(mine[0, 0], layout)[:-1], its[:-1], atol=1e-5)
        for mine, its in zip(ours, stock, strict=True)
    )


def written(values: Tensor, layout: str) -> Tensor:
    """Return one value for each pair of dimensions (…, r/2) as a family writes it: (…, r), or (…, r/2) for "once"."""
    if layout == "halves":
        return torch.cat((values, values), dim=-1)
    return values.repeat_interleave(2, dim=-1) if layout == "interleaved" else values

"""The page of each scheme, made from what it declares, from its oracle's docstring, and from a model it is put into."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import torch
from pictures import facts, panels, svg

from hf_posswap.attention import BACKENDS
from hf_posswap.common.options import REQUIRED, choices_of, declared, describe_type, option_types
from hf_posswap.errors import BackendError, PosSwapError
from hf_posswap.schemes import ModelFacts, Scheme, check_supported, list_schemes, scheme_class
from hf_posswap.swapped.questions import path_in_words

ORACLES = Path(__file__).parents[1] / "tests" / "oracles"


def overview_page(mark: str) -> str:
    """Return the page that lists the schemes."""
    rows = [
        "| scheme | choose it | parameters in a GPT-2 | longest position | in an encoder |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in list_schemes():
        scheme = scheme_class(name)
        rows.append(
            f"| [{scheme.pretty_name}](schemes/{name}.md) `{name}` | {_in_table(scheme.advice)} | "
            f"{_parameters(scheme)} | {_longest(scheme)} | {_encoder(scheme)} |"
        )
    intro = (
        "Every scheme is chosen by `pos_scheme=`: its name, `name:variant:option=value`, a dict, or its config object. "
        "All of them take `layers`, `keep_native`, `window` and `log_n`, and [several can act in one "
        "model](using.md#several-schemes-in-one-model). Δ = i − j is the distance from key j to query i, s the scaled "
        "score, H the number of heads, d the head dimension, D the model width. GPT-2 has 12 layers of 12 heads, "
        "D = 768 and 1024 positions. Which one to choose, by what was measured: [What we learnt](what-we-learnt.md)."
    )
    return "\n\n".join(["# Positional schemes", mark, intro, "\n".join(rows)]) + "\n"


def scheme_page(name: str, mark: str) -> str:
    """Return a scheme's page."""
    scheme = scheme_class(name)
    charts = panels(scheme)
    description = (scheme.__doc__ or "").strip().replace("\n\n    ", "\n\n").replace("\n    ", "\n")
    parts = [f"# {scheme.pretty_name} (`{name}`)", mark, scheme.summary, f"`{scheme.formula}`"]
    if charts:
        parts.append(f"![{_caption(scheme)}](../pictures/{name}.svg)")
    parts += [description, "## When to choose it", scheme.advice, "## Use it", _usage(scheme)]
    parts += ["## Options", options_table(scheme.config_class), "## What it costs", _costs(scheme)]
    parts += [
        "## Where it comes from",
        f"[{scheme.paper}]({scheme.paper_url}).",
        "The tests compare it with " + _oracle(name),
    ]
    return "\n\n".join(parts) + "\n"


def scheme_picture(name: str) -> str | None:
    """Return a scheme's picture as SVG, or None if it adds nothing that could be drawn."""
    charts = panels(scheme_class(name))
    return svg(charts, _caption(scheme_class(name))) if charts else None


def _caption(scheme: type[Scheme]) -> str:
    return f"What {scheme.pretty_name} adds, by distance or position"


def _usage(scheme: type[Scheme]) -> str:
    config = scheme.config_class
    lines = [
        "```python",
        f"from hf_posswap import AutoModelForCausalLM, {config.__name__}",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("gpt2", pos_scheme="{scheme.name}")',
        f'model = AutoModelForCausalLM.from_pretrained("gpt2", pos_scheme={config.__name__}())',
        "```",
    ]
    if config.variant_option:
        lines += ["", f"`{scheme.name}:VARIANT` sets `{config.variant_option}`."]
    return "\n".join(lines)


def options_table(options: type) -> str:
    """Return the fields of a dataclass of options as a table."""
    types = option_types(options)
    rows = ["| option | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in declared(options):
        choices = choices_of(field, types[field.name])
        kind = ", ".join(f"`{choice}`" for choice in choices) if choices else describe_type(types[field.name])
        rows.append(f"| `{field.name}` | {kind} | {_default(field)} | {_in_table(field.metadata['help'])} |")
    return "\n".join(rows)


def _default(field: dataclasses.Field[Any]) -> str:
    """Return the default of an option for a table."""
    if field.default is REQUIRED:
        return "required"
    return f"`{list(field.default) if isinstance(field.default, tuple) else field.default}`"


def _gpt2(causal: bool = True) -> ModelFacts:
    return ModelFacts(
        architecture="gpt2" if causal else "bert",
        hidden_size=768,
        num_heads=12,
        num_key_value_heads=12,
        head_dim=64,
        num_layers=12,
        train_length=1024,
        causal=causal,
        native="learned",
        native_table=torch.linspace(-1, 1, 1024)[:, None].repeat(1, 768),
    )


def _made(scheme: type[Scheme]) -> Scheme:
    return scheme(scheme.config_class().resolve(_gpt2()), _gpt2())


def _parameters(scheme: type[Scheme]) -> str:
    module = _made(scheme)
    inside = sum(p.numel() for layer in range(12) for p in module.make_layer(layer).parameters())
    count = sum(p.numel() for p in module.parameters()) + inside
    return f"{count:,}" if count else "none"


def _longest(scheme: type[Scheme]) -> str:
    longest = _made(scheme).longest_position()
    return "no limit" if longest is None else f"{longest:,}"


def _encoder(scheme: type[Scheme]) -> str:
    small = facts(causal=False)
    try:
        config = scheme.config_class().resolve(small)
        check_supported(config, small)
    except PosSwapError:
        return "refused"
    return "symmetric" if scheme(config, small).symmetric() else "left and right differ"


def _costs(scheme: type[Scheme]) -> str:
    module = _made(scheme)
    layer = module.make_layer(0)
    rows = ["| attention backend | how it runs in a causal model in bfloat16 |", "| --- | --- |"]
    for backend, device in [(name, device) for name in BACKENDS for device in ("cpu", "cuda")]:
        if backend != "sdpa" and device == "cuda":
            continue
        label = (
            f"`{backend}`"
            + (" on CPU" if (backend, device) == ("sdpa", "cpu") else "")
            + (" on CUDA" if device == "cuda" else "")
        )
        try:
            path = path_in_words(module, layer, backend, torch.device("cpu"), torch.bfloat16, device)
            rows.append(f"| {label} | {path} |")
        except BackendError:
            rows.append(f"| {label} | refused |")
    parameters = (
        f"Parameters in a GPT-2, with default options: {_parameters(scheme)}. Longest position: {_longest(scheme)}."
    )
    return "\n".join([parameters, f"In an encoder: {_encoder(scheme)}.", "", *rows])


def _oracle(name: str) -> str:
    module = ast.parse((ORACLES / f"{name}.py").read_text(encoding="utf-8"))
    source = (ast.get_docstring(module) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")
    return (
        f"a loop in float64 that was written from the paper alone, `tests/oracles/{name}.py` ({source}), and in every "
        "architecture with its own results under a cache, padding, packing and compilation."
    )


def _in_table(text: str) -> str:
    """Return a text for a cell: |Δ| has a sign of its own, and brackets are no links.

    Within code in a table, every Markdown escapes the bar in another way.
    """
    return text.replace("|", "∣").replace("[", "\\[")

"""Pictures of schemes, drawn from what the scheme does: small SVG line charts without a plotting library.

The files are committed and compared, so they must come out alike wherever they are drawn: no fonts, dates or ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch

from hf_posswap.common.chosen_scores import ChosenScores
from hf_posswap.common.positions import Positions
from hf_posswap.errors import PosSwapError
from hf_posswap.schemes import ModelFacts, Scheme, SchemeConfig, ScoreInputs, check_supported
from hf_posswap.schemes.curves import Curve

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 40
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#882255", "#44AA99")
"""Okabe and Ito's, then two of Paul Tol's: told apart by colour-blind readers, and seen on white and on black."""
LENGTH = 256
TRAIN_LENGTH = 128
HEADS, HEAD_DIM, HIDDEN = 4, 64, 256
LOWEST = -12.0
"""Biases below it are cut off: such a key has no weight left."""


@dataclass(frozen=True)
class Panel:
    """One chart: lines over shared x.

    Attributes:
        title: what is drawn.
        x_label: what x is.
        x: the values of x, ascending.
        lines: the values of y by label.
        dotted: lines behind them, without a label.
    """

    title: str
    x_label: str
    x: Sequence[float]
    lines: dict[str, list[float]]
    dotted: list[list[float]]


def facts(causal: bool) -> ModelFacts:
    """Facts of a small model whose numbers make readable pictures."""
    table = torch.linspace(-1, 1, TRAIN_LENGTH)[:, None].repeat(1, HIDDEN)
    return ModelFacts(
        architecture="gpt2" if causal else "bert",
        hidden_size=HIDDEN,
        num_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        num_layers=1,
        train_length=TRAIN_LENGTH,
        causal=causal,
        native="learned",
        native_table=table,
    )


def variants(scheme: type[Scheme], causal: bool) -> dict[str, SchemeConfig]:
    """Return the configs that a model of this kind takes: each choice of the variant option, or the defaults."""
    option = scheme.config_class.variant_option
    found: dict[str, SchemeConfig] = {}
    choices = [] if option is None else scheme.config_class.__dataclass_fields__[option].metadata["choices"]
    longer = {"length": LENGTH} if "length" in scheme.config_class.option_names() else {}
    for label, options in [*((choice, {option: choice}) for choice in choices), ("", {})]:
        try:
            config = scheme.config_class.from_options(options | longer).resolve(facts(causal))
            check_supported(config, facts(causal))
        except PosSwapError:
            continue  # a variant that needs more options, or another kind of attention, has no line here
        if label or not found:
            found[label] = config
    return found


def panels(scheme: type[Scheme]) -> list[Panel]:
    """Return the charts of a scheme: what it adds in a causal model, then in an encoder; none if it adds nothing."""
    result = []
    for causal in (True, False):
        configs = variants(scheme, causal)
        if not configs:
            continue
        for panel in (_bias_panel(scheme, configs, causal), _turn_panel(scheme, configs, causal)):
            if panel is not None:
                result.append(panel)
    if not result:
        result = [panel for panel in [_table_panel(scheme, variants(scheme, True))] if panel is not None]
    return result


def example_curve(causal: bool) -> Curve:
    """A curve as calibration might find it, for schemes that start at zero to take what they can from."""
    distances = torch.arange(1 - LENGTH, LENGTH)
    magnitude = distances.abs().float()
    wave = torch.sin(magnitude.sqrt() * 1.5) * torch.exp(-magnitude / 60)
    values = torch.stack([-(head + 1) * 0.4 * torch.log1p(magnitude) + 1.5 * wave for head in range(HEADS)])
    values = values - 0.01 * magnitude * (distances < 0)
    weights = torch.ones_like(values) * ((distances >= 0) if causal else 1)
    return Curve(distances, values, weights)


def _made(scheme: type[Scheme], config: SchemeConfig, causal: bool) -> tuple[Scheme, Any, str]:
    """Make a scheme and its layer; parameters that start at zero say nothing yet, so fill them, and say how."""
    torch.manual_seed(0)
    module = scheme(config, facts(causal))
    layer = module.make_layer(0)
    parameters = [*module.parameters(), *layer.parameters()]
    if not parameters or bool(parameters[0].detach().any()):
        return module, layer, ""
    curve = example_curve(causal)
    if layer.content_groups(curve.distances) is None:
        fitted = [layer.fit(curve), module.fit([curve])]
        if any(fitted):
            return module, layer, ", fitted to the dots"
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.5)
    return module, layer, ", random parameters"


@torch.no_grad()
def _bias_panel(scheme: type[Scheme], configs: dict[str, SchemeConfig], causal: bool) -> Panel | None:
    """The bias of one query by distance: a line a head, or a line a variant if there are several."""
    middle = LENGTH - 1 if causal else LENGTH // 2
    steps = torch.arange(LENGTH)[None]
    positions = Positions(steps, steps, 0, causal)
    distances = [middle - j for j in range(LENGTH - 1, -1, -1)]
    lines: dict[str, list[float]] = {}
    how, dotted = "", []
    for label, config in configs.items():
        module, layer, how = _made(scheme, config, causal)
        query = torch.ones(1, HEADS, LENGTH, HEAD_DIM) / HEAD_DIM**0.5
        key = torch.zeros_like(query)
        inputs = ScoreInputs(query, key, positions, module.prepare(positions), HEAD_DIM**-0.5, (query, key))
        bias = layer.bias(inputs)
        if bias is None or isinstance(bias, ChosenScores):  # which chooses among rotations, see `_turn_panel`
            return None
        rows = bias.rows(middle, middle + 1).expand(1, HEADS, 1, LENGTH)[0, :, 0].flip(-1)
        if len(configs) > 1:
            lines[f"{label}, head 2"] = rows[1].tolist()
        elif "fitted" in how:
            curve = example_curve(causal).values[:2, torch.tensor(distances) + LENGTH - 1]
            # Calibration knows a curve up to a constant, which softmax does not see.
            curve = curve - (curve - rows[:2]).mean(-1, keepdim=True)
            lines |= {f"head {head + 1}": rows[head].tolist() for head in range(2)}
            dotted = curve.tolist()
        else:
            lines |= {f"head {head + 1}": rows[head].tolist() for head in range(HEADS)}
    title = f"Bias in {'a causal model' if causal else 'an encoder'}{how}"
    x_label = "distance" if causal else "distance Δ (above 0: the key is on the left)"
    return Panel(title, x_label, distances, merged(lines), dotted)


def merged(lines: dict[str, list[float]]) -> dict[str, list[float]]:
    """Draw equal lines once, under both names."""
    result: dict[str, list[float]] = {}
    for label, line in lines.items():
        twin = next((name for name, other in result.items() if other == line), None)
        if twin is None:
            result[label] = line
        else:
            result = {f"{name}, {label}" if name == twin else name: other for name, other in result.items()}
    return result


@torch.no_grad()
def _turn_panel(scheme: type[Scheme], configs: dict[str, SchemeConfig], causal: bool) -> Panel | None:
    """The score of equal queries and keys by distance, for schemes that turn them: a line a variant."""
    if not causal:
        return None  # turning does not ask on which side a key is
    steps = torch.arange(LENGTH)[None]
    positions = Positions(steps, steps, 0, causal)
    lines = {}
    for label, config in configs.items():
        module, layer, _ = _made(scheme, config, causal)
        ones = torch.ones(1, HEADS, LENGTH, HEAD_DIM)
        inputs = layer.score_inputs(ones, ones, positions, module.prepare(positions), 1 / HEAD_DIM)
        scores = inputs.q[:, :, -1:] @ inputs.k.transpose(-1, -2) / HEAD_DIM
        bias = layer.bias(inputs)
        if isinstance(bias, ChosenScores):
            scores = bias.replaced(scores, LENGTH - 1, LENGTH)
        lines[label or scheme.name] = scores[0, 0, 0].flip(-1).tolist()
    if all(abs(value - 1) < 1e-6 for line in lines.values() for value in line):
        return None
    return Panel("Score of equal queries and keys", "distance", list(range(LENGTH)), merged(lines), [])


@torch.no_grad()
def _table_panel(scheme: type[Scheme], configs: dict[str, SchemeConfig]) -> Panel | None:
    """What is added to the embeddings by position, in some dimensions."""
    lines: dict[str, list[float]] = {}
    x: list[int] = []
    for label, config in configs.items():
        module, _, _ = _made(scheme, config, True)
        length = min(LENGTH, module.longest_position() or LENGTH)
        steps = torch.arange(length)[None]
        added = module.embed(Positions(steps, steps, 0, True))
        if added is None:
            return None
        x = list(range(length))
        dimensions = (32, 64, 96, 128) if len(configs) == 1 else (0,)
        for dimension in dimensions:
            name = f"{label}, dimension {dimension}".lstrip(", ")
            lines[name] = added[0, :, dimension].tolist()
    stretched = "length" in scheme.config_class.option_names()
    title = "Added to the embeddings" + (f", table of {TRAIN_LENGTH}" if stretched else "")
    return Panel(title, "position", x, merged(lines), []) if lines else None


def svg(charts: list[Panel], description: str) -> str:
    """Return charts side by side as one SVG, readable on a light and on a dark page."""
    width = WIDTH * len(charts)
    legend = max(len(chart.lines) for chart in charts)
    height = HEIGHT + 16 * legend
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'font-family="sans-serif" font-size="11" fill="#808080">',
        f"<title>{description}</title><!-- Generated by docs/pictures.py -->",
    ]
    for index, chart in enumerate(charts):
        parts.append(f'<g transform="translate({index * WIDTH} 0)">{_chart(chart)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _chart(chart: Panel) -> str:
    drawn = [y for line in [*chart.lines.values(), *chart.dotted] for y in line if y >= LOWEST]
    low, high = min(drawn), max(drawn)
    low, high = (low - 1, high + 1) if low == high else (low, high)
    start, stop = min(chart.x), max(chart.x)

    def place(x: float, y: float) -> str:
        across = LEFT + (x - start) / (stop - start) * (WIDTH - LEFT - RIGHT)
        down = TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.0f},{down:.0f}"

    floor, side = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<text x="{LEFT}" y="16" font-size="12.5" font-weight="bold">{escape(chart.title)}</text>',
        f'<path d="M{LEFT},{TOP}V{floor}H{side}" fill="none" stroke="#808080"/>',
        f'<text x="{(LEFT + side) // 2}" y="{floor + 30}" text-anchor="middle">{escape(chart.x_label)}</text>',
    ]
    for x, anchor in ((start, "start"), (stop, "end")):
        at = place(x, low).split(",")[0]
        parts.append(f'<text x="{at}" y="{floor + 15}" text-anchor="{anchor}">{x:g}</text>')
    for y in (low, high):
        down = place(start, y).split(",")[1]
        parts.append(f'<text x="{LEFT - 6}" y="{int(down) + 4}" text-anchor="end">{y + 0:.2g}</text>')
    if start < 0 < stop:
        at = place(0, low).split(",")[0]
        parts.append(f'<path d="M{at},{TOP}V{floor}" stroke="#808080" stroke-dasharray="2 3"/>')
        parts.append(f'<text x="{at}" y="{floor + 15}" text-anchor="middle">0</text>')
    for line in chart.dotted:
        for run in _runs(list(zip(chart.x, line, strict=True))):
            points = " ".join(_thinned([place(x, y) for x, y in run]))
            parts.append(f'<polyline points="{points}" fill="none" stroke="#808080" stroke-dasharray="2 3"/>')
    for index, (label, line) in enumerate(chart.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        for run in _runs(list(zip(chart.x, line, strict=True))):
            points = " ".join(_thinned([place(x, y) for x, y in run]))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        top = HEIGHT + 16 * index
        parts.append(f'<path d="M{LEFT},{top}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{LEFT + 24}" y="{top + 4}">{escape(label)}</text>')
    return "\n".join(parts)


def _runs(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Split a line where it leaves the chart: those keys are hidden, or have no weight left."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y < LOWEST:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if len(run) > 1]


def _thinned(points: list[str]) -> list[str]:
    """Leave out points that fall on the same pixel as the one before."""
    return [point for index, point in enumerate(points) if index == 0 or point != points[index - 1]]

"""The figures of a folder of results, model by model. Each family's figures are made in a module of their own."""

import importlib
import itertools
import pkgutil
from dataclasses import replace

import hf_posswap.reporting
from hf_posswap.reporting.bias_figure import silences
from hf_posswap.reporting.figures import Figure, makers
from hf_posswap.results.groups import Group, Results
from hf_posswap.results.kinds import BIASES, FAMILIES

for _module in pkgutil.iter_modules(hf_posswap.reporting.__path__):
    if _module.name.endswith("_figure"):
        importlib.import_module(f"hf_posswap.reporting.{_module.name}")


def all_figures(results: Results) -> list[tuple[str, list[Figure]]]:
    """Return the figures of each model, with unique names."""
    taken: set[str] = set()
    chapters = []
    for model in results.models():
        figures = [
            figure
            for family in FAMILIES
            for group in results.groups
            if group.family == family and group.model == model and not _unmeasured(group)
            for figure in makers[family](group)
        ]
        chapters.append((model, [_named_once(figure, taken) for figure in figures]))
    return chapters


def undrawn(results: Results) -> list[str]:
    """Return the results without a figure, with reasons: schemes without a bias by distance, and gaps only."""
    silent = [
        f"{group.model}: {scheme}, {stage}: {reason}."
        for group in results.groups
        if group.kind == BIASES and not makers[group.family](group)
        for (scheme, stage), reason in silences(group).items()
    ]
    unmeasured = [
        f"{group.model}: {group.kind.measures} was not measured: {reason}"
        for group in results.groups
        if _unmeasured(group)
        for reason in dict.fromkeys(row["note"] for row in group.rows)
    ]
    return [*silent, *unmeasured]


def _unmeasured(group: Group) -> bool:
    """Return whether a measurement has gaps only, each with its reason.

    Biases are excluded: they may have no value by distance although they were measured, see `silences`.
    """
    gaps = (row["note"] and all(row[name] is None for name in group.kind.measured) for row in group.rows)
    return group.kind != BIASES and bool(group.rows) and all(gaps)


def _named_once(figure: Figure, taken: set[str]) -> Figure:
    """Return the figure with a number added to its name if another figure has the same name."""
    names = (figure.name if count == 1 else f"{figure.name}-{count}" for count in itertools.count(1))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return replace(figure, name=name)

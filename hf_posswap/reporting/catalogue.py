"""Which figures are made of which results, and in what order."""

import itertools
from collections.abc import Callable
from dataclasses import replace

from hf_posswap.reporting.bench_figure import bench_figures
from hf_posswap.reporting.bias_figure import bias_figures, silences
from hf_posswap.reporting.figures import Figure
from hf_posswap.reporting.length_figure import length_figures
from hf_posswap.reporting.passkey_figure import passkey_figures
from hf_posswap.reporting.position_figure import position_figures
from hf_posswap.reporting.retrieval_figure import retrieval_figures
from hf_posswap.reporting.stage_figure import stage_figures
from hf_posswap.results.groups import Group, Results

MAKERS: dict[str, tuple[Callable[[Group], list[Figure]], ...]] = {
    "lengths": (stage_figures, length_figures),
    "agreement": (stage_figures, length_figures),
    "positions": (position_figures,),
    "passkey": (passkey_figures,),
    "retrieval": (retrieval_figures,),
    "bench": (bench_figures,),
    "biases": (bias_figures,),
}
"""In the order of the page, for each family of results."""


def all_figures(results: Results) -> list[tuple[str, list[Figure]]]:
    """Return the figures of each model, with names that occur once."""
    taken: set[str] = set()
    chapters = []
    for model in results.models():
        figures = [
            figure
            for family, makers in MAKERS.items()
            for group in results.groups
            if group.family == family and group.model == model and not _unmeasured(group)
            for maker in makers
            for figure in maker(group)
        ]
        chapters.append((model, [_named_once(figure, taken) for figure in figures]))
    return chapters


def undrawn(results: Results) -> list[str]:
    """Return what there is no figure of, and why: biases that say nothing by distance, measurements of gaps alone."""
    silent = [
        f"{group.model}: {scheme}, {stage}: {reason}."
        for group in results.groups
        if group.family == "biases" and not bias_figures(group)
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
    """Return whether a measurement consists of gaps alone, each with its reason.

    Of biases there may be nothing by distance though they were measured: `silences` says why.
    """
    gaps = (row["note"] and all(row[name] is None for name in group.kind.measured) for row in group.rows)
    return group.family != "biases" and bool(group.rows) and all(gaps)


def _named_once(figure: Figure, taken: set[str]) -> Figure:
    """Number a figure whose name another one has."""
    names = (figure.name if count == 1 else f"{figure.name}-{count}" for count in itertools.count(1))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return replace(figure, name=name)

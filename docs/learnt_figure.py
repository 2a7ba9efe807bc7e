"""The figures of docs/what-we-learnt.md: what each stage gives back, how healed models read on, what tokens buy."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from study_values import CONTROLS, STOCK, SWAPPED_STAGES, Evidence, SmallStudy, rate_text

from hf_posswap.reporting.figures import (
    Axis,
    Figure,
    Guide,
    LinePanel,
    Provenance,
    Series,
    Table,
    category_axis,
    common_axis,
    numbered_axis,
)
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.results.points import Point

LEVEL = Axis("nats a token above stock at its train length", "log")
CONTROL, GENTLE_CONTROL = CONTROLS[1e-3], CONTROLS[3e-4]
DRAWN = 8
"""How many of the schemes that heal best are drawn; more lines cannot be told apart."""
KNOWN = ("alibi", "rope", "none", "sinusoidal")
"""Schemes that are drawn whatever they come to: those of the literature's figures."""


def stages_figure(evidence: Evidence, far: int) -> Figure:
    """Return the main figure: stage by stage at the train length and at `far`, and the healed models by length."""
    short, study, schemes = evidence.base, evidence.studies[0], drawn(evidence, far)
    controls = {f"control, {rate_text(rate)}": evidence.control(rate) for rate in evidence.rates}
    guides = tuple(Guide("y", value.y, name) for name, value in controls.items() if value is not None)
    places = dict(zip(SWAPPED_STAGES, map(float, range(len(SWAPPED_STAGES))), strict=True))
    panels = [
        LinePanel(
            f"Stage by stage, {length} tokens",
            category_axis("", SWAPPED_STAGES),
            LEVEL,
            _lines(evidence, schemes, ((places[stage], stage, length) for stage in SWAPPED_STAGES)),
            guides,
        )
        for length in (short, far)
    ]
    lengths = sorted(study.result.settings["lengths"])
    x = numbered_axis("tokens read at once", lengths)
    healed = _lines(evidence, schemes, ((float(length), "healed", length) for length in lengths))
    train = Guide("x", float(short), f"train length {short}")
    other = [scheme for scheme in schemes if evidence.source(scheme).name == "study-small"]
    versions = list(provenance_of(study.group).versions)
    versions += (
        [f"{', '.join(other)} and the controls: docs/results/study-small/gpt2.csv, three seeds"] if other else []
    )
    panels.append(LinePanel("Healed, by length", x, LEVEL, healed, (*guides, train)))
    return _figure(
        "what-we-learnt",
        "What a swap costs a pretrained GPT-2, and what calibration and healing give back",
        common_axis(panels),
        replace(provenance_of(study.group), versions=tuple(versions)),
    )


def tokens_figure(small: SmallStudy, schemes: Sequence[str], short: int, far: int) -> Figure:
    """Return the figure of loss against tokens of healing, from both starts, at two lengths."""
    budgets = small.tokens()
    x = numbered_axis("tokens of healing", budgets)

    def line(name: str, start: str, length: int) -> Series:
        return series_of(name, [(float(n), small.above(name, start, n, length)) for n in budgets])

    # The gentler control is drawn as the stock model is: wide and pale.
    gentle = replace(line(GENTLE_CONTROL, STOCK, short), key=STOCK, background=True)
    controls = {short: (gentle, line(CONTROL, STOCK, short)), far: ()}
    shown = {
        f"Calibrated, read at {short}": ("calibrated", short),
        f"Not calibrated, read at {short}": ("uncalibrated", short),
        f"Not calibrated, read at {far}": ("uncalibrated", far),
    }
    panels = [
        LinePanel(title, x, LEVEL, (*(line(scheme, *place) for scheme in schemes), *controls[place[1]]))
        for title, place in shown.items()
    ]
    provenance = Provenance(versions=("docs/results/study-small/gpt2.csv",))
    return _figure("tokens", "What tokens of healing buy, from two starts", common_axis(panels), provenance)


def drawn(evidence: Evidence, far: int) -> list[str]:
    """Return the schemes of the main figure, those with the least loss at `far` first."""
    ends = {scheme: evidence.above(scheme, "healed", far) for scheme in evidence.schemes}
    ranked = sorted((scheme for scheme, end in ends.items() if end is not None), key=lambda scheme: ends[scheme].y)
    return [*ranked[:DRAWN], *(scheme for scheme in KNOWN if scheme in ranked[DRAWN:])]


def _lines(evidence: Evidence, schemes: Iterable[str], places: Iterable[tuple[float, str, int]]) -> tuple[Series, ...]:
    """Return a line for each scheme through places, each an x with a stage and a length."""
    wanted = list(places)
    return tuple(
        series_of(scheme, [(x, evidence.above(scheme, stage, length)) for x, stage, length in wanted])
        for scheme in schemes
    )


def series_of(key: str, values: Sequence[tuple[float, Point | None]]) -> Series:
    """Return values as a line through what is known; what is not above stock has no place on a logarithmic axis."""
    known = [(x, value) for x, value in values if value is not None and value.y > 0]
    several = any(value.seeds > 1 for _, value in known)
    return Series(
        key=key,
        label=key,
        x=tuple(x for x, _ in known),
        y=tuple(value.y for _, value in known),
        low=tuple(max(value.y if value.low is None else value.low, value.y / 10) for _, value in known)
        if several
        else (),
        high=tuple(value.y if value.high is None else value.high for _, value in known) if several else (),
    )


def _figure(name: str, title: str, panels: tuple[LinePanel, ...], provenance: Provenance) -> Figure:
    return Figure(name, title, "", "", panels, "", Table((), ()), provenance)

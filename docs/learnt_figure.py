"""The figure of docs/what-we-learnt.md: what each stage gives back, and how the healed models read on."""

from collections.abc import Sequence

from study_values import STAGES, Comparison, Value

from hf_posswap.reporting.colours import CONTROL
from hf_posswap.reporting.figures import (
    Axis,
    Figure,
    Guide,
    LinePanel,
    Series,
    Table,
    category_axis,
    common_axis,
    numbered_axis,
)
from hf_posswap.reporting.provenance import provenance_of


def learnt_figure(study: Comparison, short: int, far: int) -> Figure:
    """Return the figure: stage by stage at two lengths, and the healed models at every length.

    Args:
        study: the comparison.
        short: the stock model's train length.
        far: the longest length.
    """
    control = study.control()
    guides = () if control is None else (Guide("y", control.mean, "control"),)
    level = Axis("nats a token above stock at its train length", "log")
    panels = [
        LinePanel(f"Stage by stage, {length} tokens", category_axis("", STAGES), level, _stages(study, length), guides)
        for length in (short, far)
    ]
    lengths = sorted(study.result["settings"]["lengths"])
    x = numbered_axis("tokens read at once", lengths)
    train = Guide("x", float(short), f"train length {short}")
    panels.append(LinePanel("Healed, by length", x, level, _by_length(study, lengths), (*guides, train)))
    return Figure(
        name="what-we-learnt",
        title="What a swap costs a pretrained GPT-2, and what calibration and healing give back",
        heading="",
        variant="",
        panels=common_axis(panels),
        caption="",
        table=Table((), ()),
        provenance=provenance_of(study.group),
    )


def _stages(study: Comparison, length: int) -> tuple[Series, ...]:
    places = tuple(float(index) for index in range(len(STAGES)))
    return tuple(
        _series(scheme, places, [study.above(scheme, stage, length) for stage in STAGES]) for scheme in study.schemes
    )


def _by_length(study: Comparison, lengths: Sequence[int]) -> tuple[Series, ...]:
    return tuple(
        _series(scheme, tuple(map(float, lengths)), [study.above(scheme, "healed", length) for length in lengths])
        for scheme in study.schemes
    )


def _series(scheme: str, places: tuple[float, ...], values: Sequence[Value | None]) -> Series:
    """Return a scheme's values as a line; what is not above stock cannot stand on a logarithmic axis."""
    shown = [value if value is not None and value.mean > 0 else None for value in values]
    several = any(value is not None and value.seeds > 1 for value in shown)
    return Series(
        key=scheme,
        label=scheme,
        x=places,
        y=tuple(value and value.mean for value in shown),
        low=tuple(value and max(value.low, value.mean / 10) for value in shown) if several else (),
        high=tuple(value and value.high for value in shown) if several else (),
        background=scheme == CONTROL,
    )

"""Time and memory by scheme, as ratios to the unswapped model of the same run: bars by length, one panel per mode."""

from collections.abc import Sequence

from hf_posswap.reporting.figures import Axis, BarPanel, Figure, Guide, Series, Table, category_axis, draws, plain
from hf_posswap.reporting.lines import gap_sentences, interval
from hf_posswap.reporting.naming import model_name, slug, told_apart
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import BENCH, STOCK, Row
from hf_posswap.results.points import Point, by_key, points

MODE_TITLES = {
    "training": "Training step",
    "prefill": "Prefill",
    "decode": "Decoding",
    "attention": "Attention of one layer",
    "attention-training": "Attention of one layer, trained",
    "import": "Import",
    "load": "Loading",
}
MEASURES = {
    "time": ("Time of {}, by scheme", "time, stock = 1", "time_ratio", "time_ratio_low", "time_ratio_high"),
    "memory": ("Peak memory of {}, by scheme", "peak memory, stock = 1", "memory_ratio", "", ""),
}
HEADINGS = {"time": "Time", "memory": "Peak memory"}
DENSE, COMPARED_WITH = "dense-eager", "sdpa"
"""The dense bias in eager attention is compared with the stock model in sdpa, and so is drawn in the sdpa figure."""
DENSE_WORDS = "the same bias held as heads × length × length and added in eager attention"
Setting = tuple[str, str, str]
Lines = dict[tuple[str, bool], list[Point]]
"""Points by scheme and by whether they are of the dense bias."""


@draws(BENCH.family)
def bench_figures(group: Group) -> list[Figure]:
    """Return a figure of time and one of memory for each measured combination of device, dtype and backend."""
    settings = list(dict.fromkeys(_setting(row) for row in group.rows))
    return [
        figure
        for setting in settings
        for measure in MEASURES
        if (figure := _figure(group, setting, measure, len(settings) > 1)) is not None
    ]


def _setting(row: Row) -> Setting:
    backend = str(row.get("backend", ""))
    return str(row.get("device", "")), str(row.get("dtype", "")), COMPARED_WITH if backend == DENSE else backend


def _figure(group: Group, setting: Setting, measure: str, several: bool) -> Figure | None:
    title, axis, value, low, high = MEASURES[measure]
    rows = [row | {value: row.get(value)} for row in group.rows if _setting(row) == setting and row["scheme"] != STOCK]
    if all(row[value] is None for row in rows) and measure == "memory":
        return None
    modes = [mode for mode in MODE_TITLES if any(row["mode"] == mode for row in rows)]
    modes += sorted({row["mode"] for row in rows} - set(modes))
    lines = {mode: _lines([row for row in rows if row["mode"] == mode], value, low, high) for mode in modes}
    where = ", ".join(part for part in setting if part)
    return Figure(
        name=slug(measure, model_name(group), *(setting if several else ())),
        title=f"{title.format(model_name(group))}{f' ({where})' if where else ''}",
        heading=HEADINGS[measure],
        variant=", ".join(filter(None, (where, told_apart(group)))),
        panels=tuple(_panel(mode, own, axis) for mode, own in lines.items() if _measured(own)),
        caption="Each bar is a ratio to the unswapped model, measured in turns with it in the same run: below the line "
        "at 1 is cheaper than stock, above it dearer."
        + (" Bars are medians of repeats, whiskers their spread." if measure == "time" else "")
        + (f" Pale: {DENSE_WORDS}." if any(row.get("backend") == DENSE for row in rows) else ""),
        table=_table(lines),
        provenance=provenance_of(group),
        gaps=tuple(_gaps(lines)),
    )


def _lines(rows: Sequence[Row], value: str, low: str, high: str) -> Lines:
    """Return the points of the schemes in their order, with those of the dense bias last."""
    found: Lines = {}
    for dense in (False, True):
        own = [row for row in rows if (row.get("backend") == DENSE) == dense]
        found |= {(key, dense): points(of_key, value, low, high) for key, of_key in by_key(own).items()}
    return found


def _label(key: tuple[str, bool]) -> str:
    return f"{key[0]} (dense bias)" if key[1] else key[0]


def _measured(lines: Lines) -> bool:
    return any(point.y is not None for line in lines.values() for point in line)


def _gaps(lines: dict[str, Lines]) -> list[str]:
    """Return the gaps; a mode without any value is one gap, not one for each scheme and length."""
    empty = [mode for mode, own in lines.items() if not _measured(own)]
    sentences = [f"{MODE_TITLES.get(mode, mode)}: not measured." for mode in empty]
    for mode, own in lines.items():
        if mode not in empty:
            title = MODE_TITLES.get(mode, mode)
            sentences += [
                f"{title}: {sentence}" for sentence in gap_sentences((_label(key), line) for key, line in own.items())
            ]
    return sentences


def _panel(mode: str, lines: Lines, axis: str) -> BarPanel:
    lengths = sorted({point.x for line in lines.values() for point in line if point.y is not None})
    series = tuple(_series(key, line, lengths) for key, line in lines.items())
    x = category_axis("tokens", [plain(length) for length in lengths])
    return BarPanel(MODE_TITLES.get(mode, mode), x, Axis(axis), series, (Guide("y", 1.0, "stock"),))


def _series(key: tuple[str, bool], line: Sequence[Point], lengths: Sequence[float]) -> Series:
    places = {point.x: point for point in line}
    found = [places.get(length, Point(length, None, None, None, 0, "")) for length in lengths]
    return Series(
        key=key[0],
        label=_label(key),
        pale=key[1],
        x=tuple(float(index) for index in range(len(lengths))),
        y=tuple(point.y for point in found),
        low=tuple(point.low for point in found),
        high=tuple(point.high for point in found),
        hover=tuple(f"{plain(point.x)} tokens: {interval(point.y, point.low, point.high)} × stock" for point in found),
    )


def _table(lines: dict[str, Lines]) -> Table:
    lengths = sorted({point.x for own in lines.values() for line in own.values() for point in line})
    rows = []
    for mode, own in lines.items():
        for key, line in own.items():
            cells = {point.x: interval(point.y, point.low, point.high) for point in line}
            rows.append((mode, _label(key), *(cells.get(length, "") for length in lengths)))
    return Table(("mode", "scheme", *(plain(length) for length in lengths)), tuple(rows))

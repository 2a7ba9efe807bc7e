"""The report as a reader meets it: opened by a real Chromium."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains

from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.reporting.colours import colour_of, looks
from hf_posswap.reporting.figures import BarPanel, Figure, HeatPanel, LinePanel
from hf_posswap.reporting.page import render_page
from hf_posswap.results.groups import read_results
from tests.reporting import fixtures
from tests.reporting.browser import (
    chromium,
    complaints,
    draw_everything,
    open_page,
    prefer,
    requests,
    require_chromium,
    until,
)

pytestmark = pytest.mark.slow


def write_page(folder: Path) -> tuple[Path, list[Figure]]:
    results = read_results(folder)
    chapters = all_figures(results)
    page = folder / "report.html"
    page.write_text(render_page(results, chapters, looks(results.keys())), encoding="utf-8")
    return page, [figure for _, own in chapters for figure in own]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    require_chromium()
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def report(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    """The report of every kind of results, open and drawn."""
    page, figures = write_page(fixtures.write_all(tmp_path_factory.mktemp("results")))
    prefer(browser, "light")
    open_page(browser, page)
    draw_everything(browser)
    return figures


def drawn(browser: Any, figure: Figure, panel: int, expression: str) -> Any:
    """What a panel shows: an expression of `plot`, whose `view` is Vega's, with the rows that are drawn."""
    name = json.dumps(f"{figure.name}-{panel + 1}")
    return browser.execute_script(f"const plot = document.getElementById({name}); return {expression};")


def find(figures: list[Figure], name: str) -> Figure:
    return next(figure for figure in figures if figure.name == name)


def test_the_page_is_quiet_and_needs_no_network(browser: Any, report: list[Figure]) -> None:
    assert report
    assert complaints(browser) == []
    assert requests(browser) == []


MARKS = {LinePanel: ".mark-line path", BarPanel: ".mark-rect path", HeatPanel: ".mark-rect.role-mark path"}


def test_every_panel_draws_what_its_figure_describes(browser: Any, report: list[Figure]) -> None:
    for figure in report:
        for place, panel in enumerate(figure.panels):
            marks = drawn(browser, figure, place, f"plot.querySelectorAll('{MARKS[type(panel)]}').length")
            if isinstance(panel, HeatPanel):
                known = [value for line in panel.values for value in line if value is not None]
                assert marks == len(known), (figure.name, place)
                cells = drawn(browser, figure, place, "plot.view.data('rows').map((row) => row.value)")
                assert cells == [value for line in panel.values for value in line], figure.name
                continue
            points = {(series.label, series.y[i]) for series in panel.series for i in series.known()}
            rows = drawn(browser, figure, place, "plot.view.data('rows').map((row) => [row.label, row.y])")
            assert {(label, y) for label, y in rows if y is not None} == points, figure.name
            wanted = len({label for label, _ in rows}) if isinstance(panel, LinePanel) else len(rows)
            assert marks == wanted, (figure.name, place)


def test_every_line_has_the_look_of_its_scheme(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "length-made-up-healed")
    panel = figure.panels[0]
    assert isinstance(panel, LinePanel)
    look = "(path) => [path.getAttribute('stroke'), Number(path.getAttribute('stroke-width'))]"
    lines = drawn(browser, figure, 0, f"[...plot.querySelectorAll('.mark-line path')].map({look})")
    by_key = dict(zip([series.key for series in panel.series], lines, strict=True))
    assert by_key["alibi"][0] == colour_of("alibi")
    assert by_key["stock"][0] == "var(--ink)"
    widths = [width for _, width in lines[1:]]
    assert widths == sorted(set(widths), reverse=True), "lines on top of one another all show"


def test_a_scheme_is_hidden_and_shown_everywhere(browser: Any, report: list[Figure]) -> None:
    chip = browser.find_element("css selector", ".chip[data-key='alibi']")
    places = [
        (figure, place)
        for figure in report
        for place, panel in enumerate(figure.panels)
        if "alibi" in ([panel.key] if isinstance(panel, HeatPanel) else [series.key for series in panel.series])
    ]
    assert len(places) > 10
    rows = "plot.offsetParent === null ? 0 : plot.view.data('rows').filter((row) => row.key === 'alibi').length"
    for shown in (False, True):
        browser.execute_script("arguments[0].click()", chip)
        draw_everything(browser)
        assert chip.get_attribute("aria-pressed") == str(shown).lower()
        assert {drawn(browser, figure, place, rows) > 0 for figure, place in places} == {shown}


def test_an_axis_goes_linear_and_back(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "length-made-up-swapped")
    button = browser.find_element("css selector", f"[data-figure='{figure.name}'][data-axis='y']")
    told = []
    for _ in range(2):
        browser.execute_script("arguments[0].click()", button)
        draw_everything(browser)
        titles = "[...plot.querySelectorAll('.role-axis-title text')].map((text) => text.textContent)"
        # On a logarithmic scale the middle of the axis is the geometric mean of its ends.
        middle = "((y) => { const [a, b] = y.domain(); return y.invert((y(a) + y(b)) / 2) / Math.sqrt(a * b); })"
        told.append((
            "perplexity (log)" in drawn(browser, figure, 1, titles),
            abs(drawn(browser, figure, 1, f"{middle}(plot.view.scale('y'))") - 1) < 1e-6,
            button.text,
        ))  # fmt: skip
    assert told == [(False, False, "y axis: linear"), (True, True, "y axis: logarithmic")]


CTRL = 2
"""The modifier in Chromium's protocol."""


def ticks(browser: Any, figure: Figure) -> set[str]:
    """The labels of the vertical axis of a figure's first panel."""
    axes = "[...plot.querySelectorAll('.role-axis')].map((axis) => [...axis.querySelectorAll('.role-axis-label text')]"
    labels: list[list[str]] = drawn(browser, figure, 0, f"{axes}.map((text) => text.textContent))")
    return set(next(found for found in reversed(labels) if found))


def test_an_axis_has_ticks_at_every_zoom(browser: Any, report: list[Figure]) -> None:
    """Turning the wheel with Ctrl zooms in, so that chosen ticks leave the panel; double-clicking goes back."""
    figure = find(report, "length-made-up-healed")
    plot = browser.find_element("id", f"{figure.name}-1")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    panel = figure.panels[0]
    assert isinstance(panel, LinePanel)
    before = ticks(browser, figure)
    assert before <= set(panel.y.labels)
    wide = drawn(browser, figure, 0, "plot.view.scale('y').domain()")
    x, y = drawn(
        browser, figure, 0, "(({x, y, width, height}) => [x + width / 2, y + height / 2])(plot.getBoundingClientRect())"
    )
    pointer = {"x": x, "y": y, "deltaX": 0, "deltaY": -100}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", pointer | {"type": "mouseMoved"})
    for _ in range(20):
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", pointer | {"type": "mouseWheel", "modifiers": CTRL})
    near = "((y) => Math.log(y[1] / y[0]))(document.getElementById('{}-1').view.scale('y').domain())"
    until(browser, f"return {near.format(figure.name)} < {0.2 * math.log(wide[1] / wide[0])}")
    low, high = drawn(browser, figure, 0, "plot.view.scale('y').domain()")
    assert sum(low <= float(label.replace(",", "")) <= high for label in ticks(browser, figure)) >= 2
    ActionChains(browser).double_click(plot).perform()
    until(browser, f"return document.getElementById('{figure.name}-1').view.scale('y').domain()[0] === {wide[0]}")
    assert ticks(browser, figure) == before


def test_a_panel_can_be_saved_without_the_page(browser: Any, report: list[Figure]) -> None:
    catch_downloads(browser)
    button = browser.find_element("css selector", "[data-save='bias-made-up-t5-1']")
    browser.execute_script("arguments[0].click()", button)
    svg = until(browser, "return window.saved[0]")
    assert svg.startswith("<svg")
    assert "var(--" not in svg


def catch_downloads(browser: Any) -> None:
    browser.execute_script(
        "window.saved = [];"
        "URL.createObjectURL = (blob) => { blob.text().then((text) => window.saved.push(text)); return '#'; }"
    )


def test_pointing_at_a_line_tells_its_values(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "length-made-up-healed")
    plot = browser.find_element("id", f"{figure.name}-1")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(browser).move_to_element(plot).move_by_offset(5, 5).perform()
    text = until(browser, "return document.getElementById('tip').innerText")
    assert [line.split(" ", 1)[0] for line in text.splitlines()] == ["stock", "control", *fixtures.SCHEMES]
    assert re.search(r"alibi perplexity [\d.]+ \([\d.]+–[\d.]+\), loss [\d.]+ nats", text), text


def test_dark_follows_the_system(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "length-made-up-healed")
    seen = {}
    for scheme in ("dark", "light"):
        prefer(browser, scheme)
        page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        stroke = "getComputedStyle(plot.querySelector('.mark-line path')).stroke"
        paper = "getComputedStyle(plot.querySelector('svg')).backgroundColor"
        seen[scheme] = (page, drawn(browser, figure, 0, paper), drawn(browser, figure, 0, stroke))
    assert seen["light"] == ("rgb(255, 255, 255)", "rgb(255, 255, 255)", "rgb(22, 24, 29)")
    assert seen["dark"] == ("rgb(21, 24, 29)", "rgb(21, 24, 29)", "rgb(233, 235, 238)")


def test_the_numbers_can_be_saved(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "time-made-up")
    catch_downloads(browser)
    button = browser.find_element("css selector", f"[data-table='{figure.name}']")
    browser.execute_script("arguments[0].click()", button)
    lines = until(browser, "return window.saved[0]").splitlines()
    assert lines[0] == ",".join(figure.table.columns)
    assert len(lines) == len(figure.table.rows) + 1


def test_a_narrow_screen_has_no_sideways_scrolling(browser: Any, report: list[Figure]) -> None:
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert until(browser, "return innerWidth == 360")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        assert until(browser, "return document.querySelector('.plot svg').clientWidth <= 360")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>&lt;b&gt; %{x} $x_"


def test_what_comes_from_files_stays_text(browser: Any, tmp_path: Path) -> None:
    """Names, notes and commands with tags in them show as they are, and run nothing."""
    for name, make in fixtures.MAKERS.items():
        record = make()
        text = json.dumps(record).replace('"made-up"', json.dumps(HOSTILE)).replace('"alibi"', json.dumps(HOSTILE))
        record = json.loads(text.replace("longest position 256", json.dumps(HOSTILE)[1:-1]))
        record["environment"]["command"] = record["texts"] = HOSTILE
        record["texts"] = [{"name": HOSTILE, "tokens": 1}]
        fixtures.write(tmp_path, name, record)
    page, figures = write_page(tmp_path)
    prefer(browser, "light")
    complaints(browser)
    open_page(browser, page)
    draw_everything(browser)
    assert browser.execute_script("return window.broken") is None
    assert complaints(browser) == []
    assert requests(browser) == []
    assert browser.execute_script("return document.querySelectorAll('img, iframe, object').length") == 0
    assert HOSTILE in browser.find_element("css selector", "h2").text
    shown = find(figures, next(figure.name for figure in figures if figure.heading == "Perplexity against length"))
    plot = browser.find_element("id", f"{shown.name}-1")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(browser).move_to_element(plot).move_by_offset(5, 5).perform()
    assert HOSTILE in until(browser, "return document.getElementById('tip').innerText")


def test_printing_draws_what_was_never_on_the_screen(browser: Any, tmp_path: Path) -> None:
    page, figures = write_page(fixtures.write_all(tmp_path))
    open_page(browser, page)
    count = "return document.querySelectorAll('.plot[data-drawn]').length"
    panels = sum(len(figure.panels) for figure in figures)
    assert browser.execute_script(count) < panels
    browser.execute_cdp_cmd("Page.printToPDF", {})
    assert browser.execute_script(count) == panels

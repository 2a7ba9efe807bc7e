"""The report as a reader meets it: opened by a real Chromium."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.reporting.colours import colour_of, looks
from hf_posswap.reporting.figures import Figure, HeatPanel
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
    """What plotly holds of a panel: an expression of `plot`."""
    name = json.dumps(f"{figure.name}-{panel + 1}")
    return browser.execute_script(f"const plot = document.getElementById({name}); return {expression};")


def find(figures: list[Figure], name: str) -> Figure:
    return next(figure for figure in figures if figure.name == name)


def test_the_page_is_quiet_and_needs_no_network(browser: Any, report: list[Figure]) -> None:
    assert report
    assert complaints(browser) == []
    assert requests(browser) == []


def test_every_panel_draws_what_its_figure_describes(browser: Any, report: list[Figure]) -> None:
    for figure in report:
        for place, panel in enumerate(figure.panels):
            shapes = drawn(browser, figure, place, "plot.querySelectorAll('.trace, .hm image, .bars .point').length")
            assert shapes > 0, (figure.name, place)
            kept = "plot.data.filter((t) => !t.meta.band && !t.meta.end)"
            if isinstance(panel, HeatPanel):
                cells = drawn(browser, figure, place, f"{kept}[0].z")
                assert cells == [list(row) for row in panel.values], figure.name
                continue
            lines = drawn(browser, figure, place, f"{kept}.map((t) => [t.meta.key, Array.from(t.y)])")
            assert lines == [[series.key, list(series.y)] for series in panel.series], figure.name


def test_every_line_is_visible_as_a_path(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "length-made-up-healed")
    paths = drawn(browser, figure, 0, "plot.querySelectorAll('.scatterlayer path.js-line').length")
    assert paths >= len(figure.panels[0].series)  # a panel of lines
    colours = drawn(browser, figure, 0, "plot.data.filter((t) => t.meta.key == 'alibi' && !t.meta.band)[0].line.color")
    assert colours.upper() == colour_of("alibi")


def test_a_scheme_is_hidden_and_shown_everywhere(browser: Any, report: list[Figure]) -> None:
    chip = browser.find_element("css selector", ".chip[data-key='alibi']")
    places = [
        (figure, place)
        for figure in report
        for place, panel in enumerate(figure.panels)
        if "alibi" in ([panel.key] if isinstance(panel, HeatPanel) else [series.key for series in panel.series])
    ]
    assert len(places) > 10
    visible = "plot.data.filter((t) => t.meta.key == 'alibi').every((t) => t.visible)"
    for shown in (False, True):
        before = drawn(browser, *places[-1], "Number(plot.dataset.drawn)")
        browser.execute_script("arguments[0].click()", chip)
        last = f"{places[-1][0].name}-{places[-1][1] + 1}"
        until(browser, f"return Number(document.getElementById({json.dumps(last)}).dataset.drawn) > {before}")
        assert chip.get_attribute("aria-pressed") == str(shown).lower()
        assert {drawn(browser, figure, place, visible) for figure, place in places} == {shown}


def test_an_axis_goes_linear_and_back(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "length-made-up-swapped")
    button = browser.find_element("css selector", f"[data-figure='{figure.name}'][data-axis='y']")
    kinds = []
    for _ in range(2):
        before = drawn(browser, figure, 1, "Number(plot.dataset.drawn)")
        browser.execute_script("arguments[0].click()", button)
        until(browser, f"return Number(document.getElementById('{figure.name}-2').dataset.drawn) > {before}")
        kinds.append((drawn(browser, figure, 1, "plot.layout.yaxis.type"), button.text))
    assert kinds == [("linear", "y axis: linear"), ("log", "y axis: logarithmic")]


def test_pointing_at_a_line_tells_its_values(browser: Any, report: list[Figure]) -> None:
    from selenium.webdriver import ActionChains

    figure = find(report, "length-made-up-healed")
    plot = browser.find_element("id", f"{figure.name}-1")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(browser).move_to_element(plot).move_by_offset(5, 5).perform()
    said = f"[...document.querySelectorAll('#{figure.name}-1 .hoverlayer text')].map((t) => t.textContent).join(' ')"
    text = until(browser, f"return {said}")
    assert re.search(r"alibi perplexity [\d.]+ \([\d.]+–[\d.]+\), loss [\d.]+ nats", text), text


def test_dark_follows_the_system(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "length-made-up-healed")
    seen = {}
    for scheme in ("dark", "light"):
        before = drawn(browser, figure, 0, "Number(plot.dataset.drawn)")
        prefer(browser, scheme)
        until(browser, f"return Number(document.getElementById('{figure.name}-1').dataset.drawn) > {before}")
        stock = "plot.data.filter((t) => t.meta.key == 'stock')[0].line.color"
        page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        seen[scheme] = (page, drawn(browser, figure, 0, "plot.layout.paper_bgcolor"), drawn(browser, figure, 0, stock))
    assert seen["light"] == ("rgb(255, 255, 255)", "#ffffff", "#16181d")
    assert seen["dark"] == ("rgb(21, 24, 29)", "#15181d", "#e9ebee")


def test_the_numbers_can_be_saved(browser: Any, report: list[Figure]) -> None:
    figure = find(report, "time-made-up")
    browser.execute_script(
        "window.saved = [];"
        "URL.createObjectURL = (blob) => { blob.text().then((text) => window.saved.push(text)); return '#'; }"
    )
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
        assert until(browser, "return document.querySelector('.plot .main-svg').clientWidth <= 360")
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
    assert (
        browser.execute_script("return document.querySelectorAll('img:not(.main-svg *), iframe, object').length") == 0
    )
    assert HOSTILE in browser.find_element("css selector", "h2").text
    shown = find(figures, next(figure.name for figure in figures if figure.heading == "Perplexity against length"))
    said = drawn(browser, shown, 0, "plot.data.map((t) => (t.text || [''])[0]).join()")
    assert "<img" not in said

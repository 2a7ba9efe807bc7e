"""The figures as images."""

import io
import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.reporting.colours import looks
from hf_posswap.reporting.figures import Figure, LinePanel, Panel, Provenance, Table
from hf_posswap.reporting.images import converter, draw, repacked, sheet
from hf_posswap.reporting.length_figure import length_figures
from hf_posswap.results.groups import as_group, read_results
from hf_posswap.results.reading import result_file
from tests.reporting import fixtures


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    results = read_results(fixtures.write_all(tmp_path_factory.mktemp("results")))
    return {figure.name: figure for _, own in all_figures(results) for figure in own}


@pytest.mark.parametrize("name", ["passkey-made-up-healed", "time-made-up"])
def test_the_same_figure_gives_the_same_bytes(figures: dict[str, Figure], tmp_path: Path, name: str) -> None:
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<svg")):
        for number in (1, 2):
            draw(figures[name], tmp_path / f"{number}.{suffix}")
        first, second = ((tmp_path / f"{number}.{suffix}").read_bytes() for number in (1, 2))
        assert first.startswith(start)
        assert first == second


def test_a_png_is_packed_without_changing_a_pixel(figures: dict[str, Figure]) -> None:
    from PIL import Image

    styles = looks(figures["time-made-up"].schemes())
    png = converter().svg_to_png(converter().vegalite_to_svg(sheet(figures["time-made-up"], styles)))
    small = repacked(png)
    assert len(small) < 0.6 * len(png)
    before, after = (Image.open(io.BytesIO(data)) for data in (png, small))
    after.verify()
    assert Image.open(io.BytesIO(small)).tobytes() == before.tobytes()


def test_a_figure_can_be_a_pdf(figures: dict[str, Figure], tmp_path: Path) -> None:
    draw(figures["time-made-up"], tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_names_with_markup_are_drawn_as_they_are(figures: dict[str, Figure], tmp_path: Path) -> None:
    """A $ starts no formula, and a tag does not end up in the SVG as one."""
    figure = replace(figures["length-made-up-healed"], title="100$ and $x_ <script>alert(1)</script> --> &amp;")
    path = tmp_path / "figure.svg"
    draw(figure, path)
    elements = [(element.tag.rpartition("}")[2], element.text) for element in ElementTree.parse(path).iter()]
    assert "script" not in {tag for tag, _ in elements}
    assert figure.title in "".join(text for tag, text in elements if tag == "text" and text)


def drawn_lines(path: Path) -> list[ElementTree.Element]:
    """The lines of an SVG, without those of the legend, axes and guides."""
    groups = [element for element in ElementTree.parse(path).iter() if "mark-line" in element.get("class", "")]
    return [element for group in groups for element in group.iter() if element.tag.endswith("path")]


def test_lines_on_top_of_one_another_all_show(tmp_path: Path) -> None:
    """Each further line is thinner than the lines below it."""
    record = fixtures.lengths(["windows"])
    copies = [row | {"scheme": name} for name in ("none", "learned") for row in record["rows"] if row["scheme"] == "t5"]
    figure = length_figures(as_group(result_file(record | {"rows": record["rows"] + copies})))[-1]
    draw(figure, tmp_path / "figure.svg")
    lines = drawn_lines(tmp_path / "figure.svg")
    front = [series for series in figure.panels[0].series if not series.background]
    assert [series.key for series in front[-2:]] == ["none", "learned"]
    assert len(lines) == len(front) + 1
    widths = [float(line.get("stroke-width", 0)) for line in lines[1:]]
    assert all(below - above > 0.2 for below, above in itertools.pairwise(widths))
    assert widths[-1] >= 1.5


def test_a_stock_model_measured_at_one_length_shows(tmp_path: Path) -> None:
    """A line of one point is not drawn, and lines in the background have no markers."""
    record = fixtures.lengths(["windows"])
    rows = [row for row in record["rows"] if row["scheme"] == "stock"]
    for kept, dots in ((rows[:1], 1), (rows[:2], 0)):
        figure = length_figures(as_group(result_file(record | {"rows": kept})))[0]
        draw(figure, tmp_path / "figure.svg")
        elements = ElementTree.parse(tmp_path / "figure.svg").iter()
        assert sum(element.get("opacity") == "0.28" for element in elements) == dots


def test_a_series_has_one_place_in_the_legend(figures: dict[str, Figure]) -> None:
    """A line that is equal to another in one panel only is named without it."""
    figure = figures["length-made-up-healed"]
    one, two = figure.panels
    assert isinstance(one, LinePanel)
    assert isinstance(two, LinePanel)
    equal = replace(one, series=(*one.series[:-1], replace(one.series[-1], equal="t5")))
    keys = [series.key for series in one.series]
    assert legend_names((one, two)) == keys
    assert legend_names((equal, two)) == keys
    assert legend_names((equal, equal)) == [*keys[:-1], f"{keys[-1]} (= t5)"]


def legend_names(panels: Sequence[Panel]) -> list[str]:
    styles = looks([series.key for panel in panels if isinstance(panel, LinePanel) for series in panel.series])
    drawn = sheet(Figure("name", "title", "", "", tuple(panels), "", Table((), ()), Provenance()), styles)
    legend = drawn["vconcat"][0]["hconcat"][1]
    return [row["name"] for row in legend["data"]["values"]]


@pytest.mark.parametrize("name", ["length-made-up-healed", "time-made-up", "bias-made-up-t5", "passkey-made-up-healed"])
def test_an_image_has_colours_of_paper_only(figures: dict[str, Figure], tmp_path: Path, name: str) -> None:
    draw(figures[name], tmp_path / "figure.svg")
    assert "var(--" not in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_a_figure_of_nothing_but_gaps_is_drawn(tmp_path: Path) -> None:
    record = fixtures.lengths()
    rows = [row | {"loss": None, "perplexity": None, "loss_low": None, "loss_high": None} for row in record["rows"]]
    fixtures.write(tmp_path, "compare", record | {"rows": rows})
    for _, figures in all_figures(read_results(tmp_path)):
        for figure in figures:
            draw(figure, tmp_path / f"{figure.name}.png")
            assert figure.gaps or figure.heading.startswith("What calibration")

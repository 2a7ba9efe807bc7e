"""The figures as images."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.reporting.figures import Figure
from hf_posswap.reporting.images import draw
from hf_posswap.results.groups import read_results
from tests.reporting import fixtures


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    results = read_results(fixtures.write_all(tmp_path_factory.mktemp("results")))
    return {figure.name: figure for _, own in all_figures(results) for figure in own}


@pytest.mark.parametrize("name", ["passkey-made-up-healed", "time-made-up"])
def test_the_same_figure_gives_the_same_bytes(figures: dict[str, Figure], tmp_path: Path, name: str) -> None:
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        for number in (1, 2):
            draw(figures[name], tmp_path / f"{number}.{suffix}")
        first, second = ((tmp_path / f"{number}.{suffix}").read_bytes() for number in (1, 2))
        assert first.startswith(start)
        assert first == second


def test_names_with_markup_are_drawn_as_they_are(figures: dict[str, Figure], tmp_path: Path) -> None:
    """A $ starts no formula, and a tag does not end up in the SVG as one."""
    figure = replace(figures["length-made-up-healed"], title="100$ and $x_ <script>alert(1)</script> --> &amp;")
    path = tmp_path / "figure.svg"
    draw(figure, path)
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
    assert "script" not in tags
    assert "path" in tags


def test_a_figure_of_nothing_but_gaps_is_drawn(tmp_path: Path) -> None:
    record = fixtures.lengths()
    rows = [row | {"loss": None, "perplexity": None, "loss_low": None, "loss_high": None} for row in record["rows"]]
    fixtures.write(tmp_path, "compare", record | {"rows": rows})
    for _, figures in all_figures(read_results(tmp_path)):
        for figure in figures:
            draw(figure, tmp_path / f"{figure.name}.png")
            assert figure.gaps or figure.heading.startswith("What calibration")

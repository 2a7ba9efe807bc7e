"""The figure of a search, drawn from its result file alone."""

import math
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.experiments.halving import round_sizes
from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.reporting.figures import LinePanel
from hf_posswap.reporting.report import write_report
from hf_posswap.reporting.search_figure import draw_search, search_figures
from hf_posswap.results.groups import as_group, read_results
from hf_posswap.results.kinds import SEARCH
from hf_posswap.results.reading import read_result, result_file
from hf_posswap.results.writing import to_json
from tests.reporting.fixtures import envelope

SCHEMES = ("alibi:trainable=true:per_layer=true", "t5:per_layer=true", "rope", "none", "kerple:per_layer=true")


def searched(schemes: tuple[str, ...] = SCHEMES, winner: str | None = SCHEMES[1], tokens: int = 20_000) -> Any:
    """A search that is made up: the schemes are dropped from the end, and more tokens heal them."""
    rows = []
    sizes = [len(schemes), *round_sizes(len(schemes))]
    healed = 0
    for number, size in enumerate(sizes):
        healed += tokens // size if number else 0
        for place, scheme in enumerate(schemes[:size]):
            for length in (256, 4096):
                loss = 3.9 + (0.6 + 0.1 * place) * math.exp(-number) + 0.004 * place * (length > 256)
                rows.append(row(scheme, number, healed, length, loss))
    rows += [row("stock", 0, 0, 256, 3.85), row("stock", 0, 0, 4096, None)]
    rows += [row("t5:layers=0", None, 0, length, 3.9) for length in (256, 4096)]
    return envelope(SEARCH.name, rows, objective="The rule.", winner=winner, target_length=4096)


def row(scheme: str, number: int | None, healed: int, length: int, loss: float | None) -> dict[str, Any]:
    stage = "stock" if scheme == "stock" else "healed" if number else "calibrated"
    label = {"model": "made-up", "scheme": scheme, "stage": stage, "seed": 0, "protocol": "same-targets"}
    low, high = (None, None) if loss is None else (loss - 0.05, loss + 0.05)
    measured = {"loss": loss, "perplexity": None if loss is None else math.exp(loss), "loss_low": low}
    note = {"note": "longest position 256" if loss is None else ""}
    more = {"round": number, "healing_tokens": healed, "length": length, "loss_high": high, "tokens": 9, "windows": 2}
    return label | more | measured | note


def test_a_line_for_each_candidate_ends_where_it_was_dropped_and_the_winner_is_marked() -> None:
    (figure,) = search_figures(as_group(result_file(searched())))
    titles = ["Target length, 4096 tokens", "Train length, 256 tokens", "Target length, 4096 tokens, the last rounds"]
    assert [panel.title for panel in figure.panels] == titles
    panel = figure.panels[0]
    assert isinstance(panel, LinePanel)
    assert panel.x.labels == ("0", "6,666", "16,666")
    lines = {series.label: series for series in panel.series}
    assert list(lines) == [*SCHEMES, "the winner"], "neither stock nor single layers are candidates"
    assert [len(lines[scheme].known()) for scheme in SCHEMES] == [3, 3, 2, 1, 1]
    assert lines["rope"].end == "dropped after round 1"
    assert lines["none"].end == "dropped after round 0"
    assert lines[SCHEMES[1]].end == ""
    assert (lines["the winner"].background, lines["the winner"].y) == (True, lines[SCHEMES[1]].y)
    assert [(guide.text, guide.value) for guide in panel.guides] == [("stock at 256", pytest.approx(math.exp(3.85)))]
    late = figure.panels[2]
    assert isinstance(late, LinePanel)
    assert [series.label for series in late.series] == [*SCHEMES[:3], "the winner"]
    assert {series.x for series in late.series} == {(0.0, 1.0)}, "on an axis of categories"
    assert (late.x.labels, {series.low for series in late.series}) == (("6,666", "16,666"), {()})
    assert "The rule." in figure.caption
    assert figure.gaps == ("stock: nothing at length 4096 (longest position 256).",)
    assert len(figure.table.rows) == sum([5, 3, 2]) + 1


def test_a_search_that_is_not_complete_has_no_winner() -> None:
    (figure,) = search_figures(as_group(result_file(searched(winner=None))))
    panel = figure.panels[0]
    assert isinstance(panel, LinePanel)
    assert "the winner" not in [series.label for series in panel.series]
    assert "winner" not in figure.caption
    (short,) = search_figures(as_group(result_file(searched(SCHEMES[:2]))))
    assert len(short.panels) == 2
    assert "enlarged" not in short.caption


def test_it_is_an_image_and_part_of_a_report(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(to_json(searched()))
    draw_search(read_result(tmp_path / "search.json"), tmp_path / "search.svg")
    drawn = (tmp_path / "search.svg").read_text()
    assert all(scheme in drawn for scheme in SCHEMES)
    assert "the winner" in drawn
    ((_, figures),) = all_figures(read_results(tmp_path))
    assert [figure.heading for figure in figures] == ["Search for the best scheme"]
    report = write_report(tmp_path)
    assert "Search for the best scheme" in report.page.read_text(encoding="utf-8")
    assert {path.name for path in report.images} == {"search-made-up.png", "search-made-up.svg"}

"""What each figure shows, before anything is drawn."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.reporting.comparison_figure import comparison_figure
from hf_posswap.reporting.figures import BarPanel, Figure, HeatPanel, LinePanel, log_axis, makers
from hf_posswap.reporting.length_figure import length_figures
from hf_posswap.results.groups import as_group, read_results
from hf_posswap.results.kinds import FAMILIES
from hf_posswap.results.reading import result_file
from tests.reporting import fixtures


def figures_of(tmp_path: Path, name: str, record: dict[str, Any]) -> dict[str, Figure]:
    fixtures.write(tmp_path, name, record)
    ((_, figures),) = all_figures(read_results(tmp_path))
    return {figure.name: figure for figure in figures}


def test_every_family_of_results_has_figures() -> None:
    assert set(makers) == set(FAMILIES)


def test_lengths_have_a_figure_a_stage_with_stock_and_control(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "compare", fixtures.lengths())
    assert list(figures) == [
        "stages-made-up", "length-made-up-swapped", "length-made-up-calibrated", "length-made-up-healed"
    ]  # fmt: skip
    figure = figures["length-made-up-healed"]
    assert figure.schemes() == ["stock", "control", *fixtures.SCHEMES]
    windows, same = figure.panels
    assert isinstance(windows, LinePanel)
    assert (windows.title, same.title) == ("Non-overlapping windows", "Same target tokens, ever longer context")
    alibi = next(series for series in windows.series if series.key == "alibi")
    wanted = [math.exp(fixtures.loss("alibi", "healed", length)) for length in fixtures.LENGTHS]
    assert alibi.y == pytest.approx(wanted)
    assert alibi.low == pytest.approx([value * math.exp(-0.05) for value in wanted])
    assert windows.guides[0].value == fixtures.TRAIN_LENGTH


def test_gaps_are_stated_and_marked(tmp_path: Path) -> None:
    figure = figures_of(tmp_path, "compare", fixtures.lengths())["length-made-up-healed"]
    assert figure.gaps == ("stock, control: nothing at length 512, 1024 (longest position 256).",)
    panel = figure.panels[0]
    assert isinstance(panel, LinePanel)
    assert panel.series[0].end == "longest position 256"
    assert panel.series[0].y[3:] == (None, None)
    assert next(row for row in figure.table.rows if row[1] == "stock")[-1] == "—"


def test_several_seeds_are_merged_and_said(tmp_path: Path) -> None:
    figure = figures_of(tmp_path, "compare", fixtures.lengths(seeds=(0, 1, 2)))["length-made-up-swapped"]
    panel = figure.panels[0]
    assert isinstance(panel, LinePanel)
    alibi = next(series for series in panel.series if series.key == "alibi")
    base = fixtures.loss("alibi", "swapped", 64)
    assert alibi.y[0] == pytest.approx(math.exp(base + 0.01))
    assert alibi.low[0] == pytest.approx(math.exp(base - 0.05))
    assert alibi.high[0] == pytest.approx(math.exp(base + 0.07))
    assert "Several seeds" in figure.caption
    assert "3 seeds" in alibi.hover[0]


def test_the_stages_stand_side_by_side_beside_stock(tmp_path: Path) -> None:
    figure = figures_of(tmp_path, "compare", fixtures.lengths())["stages-made-up"]
    assert [panel.title for panel in figure.panels] == [
        "Non-overlapping windows, 256 tokens",
        "Non-overlapping windows, 1024 tokens",
        "Same target tokens, ever longer context, 256 tokens",
        "Same target tokens, ever longer context, 1024 tokens",
    ]
    near, far = figure.panels[:2]
    assert isinstance(near, LinePanel)
    assert isinstance(far, LinePanel)
    assert near.x.labels == fixtures.STAGES
    t5 = next(series for series in near.series if series.key == "t5")
    assert t5.y == pytest.approx([math.exp(fixtures.loss("t5", stage, 256)) for stage in fixtures.STAGES])
    assert far.guides[0].text == "stock at 256"


@pytest.mark.parametrize("left_out", ["stock", "control"])
def test_the_caption_of_the_stages_speaks_of_what_was_measured(left_out: str, tmp_path: Path) -> None:
    told = {"stock": "The wide pale line is the stock model", "control": "The dashed line is the control"}
    record = fixtures.lengths()
    whole = figures_of(tmp_path / "whole", "compare", record)["stages-made-up"].caption
    assert all(words in whole for words in told.values())
    assert "as it was swapped in, after calibration and after healing" in whole
    rows = [row for row in record["rows"] if row["stage"] not in (left_out, "calibrated")]
    part = figures_of(tmp_path / "part", "compare", record | {"rows": rows})["stages-made-up"].caption
    assert {key for key, words in told.items() if words in part} == set(told) - {left_out}
    assert "as it was swapped in and after healing" in part


def test_one_stage_needs_no_figure_of_stages(tmp_path: Path) -> None:
    record = fixtures.lengths()
    rows = [row for row in record["rows"] if row["stage"] in ("stock", "swapped")]
    assert list(figures_of(tmp_path, "compare", record | {"rows": rows})) == ["length-made-up-swapped"]


def test_lines_on_top_of_one_another_say_so() -> None:
    record = fixtures.lengths()
    copies = [row | {"scheme": "none"} for row in record["rows"] if row["scheme"] == "t5"]
    figure = length_figures(as_group(result_file(record | {"rows": record["rows"] + copies})))[0]
    panel = figure.panels[0]
    assert isinstance(panel, LinePanel)
    assert [(series.label, series.name) for series in panel.series][-1] == ("none", "none (= t5)")


def test_positions_have_a_panel_a_length(tmp_path: Path) -> None:
    figure = figures_of(tmp_path, "positions", fixtures.positions())["position-made-up-healed"]
    assert [panel.title for panel in figure.panels] == ["Texts of 256 tokens", "Texts of 1024 tokens"]
    short, long = figure.panels
    assert isinstance(short, LinePanel)
    assert isinstance(long, LinePanel)
    assert not short.guides, "the train length is the end of the text"
    assert long.guides[0].value == 256
    assert figure.gaps == ("stock, control: nothing at length 1024 (longest position 256).",)


def test_the_log_probability_of_pass_keys_is_a_line_a_scheme(tmp_path: Path) -> None:
    record = fixtures.passkey()
    assert not any("probability" in name for name in figures_of(tmp_path, "passkey", record)), "files from before"
    rows = [
        row | {"log_probability": row["correct"] and -2.0 - row["depth"] - ("t5" in row["scheme"])}
        for row in record["rows"]
    ]
    figure = figures_of(tmp_path, "passkey", record | {"rows": rows})["passkey-probability-made-up-healed"]
    (panel,) = figure.panels
    assert isinstance(panel, LinePanel)
    lines = {series.key: series for series in panel.series}
    t5 = lines["t5"]
    assert (t5.x[0], t5.y[0], t5.hover[0]) == (64, pytest.approx(-3.5), "-3.5 (-4–-3)")
    assert lines["stock"].x == (64, 128, 256)


def test_passkeys_have_a_heat_map_a_scheme(tmp_path: Path) -> None:
    figure = figures_of(tmp_path, "passkey", fixtures.passkey())["passkey-made-up-healed"]
    assert [panel.title for panel in figure.panels][:3] == ["stock", "control", "alibi"]
    stock = figure.panels[0]
    assert isinstance(stock, HeatPanel)
    assert stock.y.labels == ("0%", "25%", "50%", "75%", "100%")
    assert stock.values[0][-1] is None
    assert stock.texts[-1][0] == "100"
    assert "Chance is 10%." in figure.caption
    assert "20 trials" in figure.caption


def test_encoders_have_masked_loss_and_retrieval(tmp_path: Path) -> None:
    fixtures.write(tmp_path, "retrieval", fixtures.retrieval())
    figures = figures_of(tmp_path, "lengths", fixtures.masked())
    masked, retrieval = figures["length-made-up-encoder-healed"], figures["retrieval-made-up-encoder-healed"]
    assert masked.title.startswith("Masked-token perplexity")
    assert [panel.title for panel in masked.panels] == ["Same masked tokens at every length"]
    assert [panel.title for panel in retrieval.panels] == ["ndcg@10", "recall@1", "recall@10"]


def test_costs_are_bars_beside_stock_at_one(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "bench", fixtures.bench())
    time, memory = figures["time-made-up"], figures["memory-made-up"]
    assert [panel.title for panel in time.panels] == ["Training step", "Prefill", "Decoding"]
    panel = time.panels[0]
    assert isinstance(panel, BarPanel)
    assert panel.guides[0].value == 1.0
    assert panel.series[0].low[0] is not None
    assert [panel.title for panel in memory.panels] == ["Training step", "Prefill"]
    assert "Decoding: not measured." in memory.gaps
    assert "Prefill: dense bias in eager attention: nothing at length 8192 (out of memory)." in time.gaps


def test_biases_are_maps_by_head_and_rotations_lines(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "biases", fixtures.biases())
    assert list(figures) == ["distances-made-up", "bias-made-up-alibi", "bias-made-up-t5"]
    lines = figures["distances-made-up"].panels[0]
    assert isinstance(lines, LinePanel)
    assert [series.key for series in lines.series] == ["rope:yarn"]
    assert figures["distances-made-up"].gaps == ("sinusoidal, swapped: enters at the embeddings only.",)
    assert figures["bias-made-up-t5"].gaps[0].startswith("t5, swapped: zero at every distance")
    alibi, t5 = figures["bias-made-up-alibi"].panels[0], figures["bias-made-up-t5"].panels[0]
    assert isinstance(alibi, HeatPanel)
    assert isinstance(t5, HeatPanel)
    assert alibi.rows == tuple(f"every layer, head {head}" for head in range(4))
    assert alibi.values[0][1] == -0.25
    assert (alibi.colour.low, alibi.colour.high) == (-10.0, 10.0)
    assert len(t5.rows) == 12
    assert t5.rules == (4, 8)
    for panel in (alibi, t5):
        assert len(panel.x.ticks) > 3
        apart = [after - before for before, after in itertools.pairwise(panel.x.ticks)]
        assert min(apart) >= len(panel.columns) / 24
    assert "All layers say the same, so each head stands once." in figures["bias-made-up-alibi"].caption
    assert "All layers" not in figures["bias-made-up-t5"].caption


def test_a_scheme_that_calibration_sets_layer_by_layer_says_where_layers_are_alike(tmp_path: Path) -> None:
    biases = fixtures.biases()
    alike = [row for row in biases["rows"] if row["scheme"] == "alibi"]
    apart = [row | {"stage": "calibrated", "layer": layer} for layer in range(2) for row in alike]
    (figure,) = figures_of(tmp_path, "biases", biases | {"rows": alike + apart}).values()
    assert "All layers say the same where it is swapped, so each head stands once." in figure.caption


def test_every_figure_says_where_it_comes_from(tmp_path: Path) -> None:
    for _, figures in all_figures(read_results(fixtures.write_all(tmp_path))):
        for figure in figures:
            assert figure.provenance.commands[0].startswith("hf-posswap made-up-for-tests")
            assert figure.provenance.files
            assert "torch 2.13.0" in figure.provenance.summary()
            assert figure.table.rows
            assert all(len(row) == len(figure.table.columns) for row in figure.table.rows)


def test_names_occur_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fixtures.write(tmp_path / name, "compare", fixtures.lengths() | {"texts": [{"name": name, "sha256": name}]})
    names = [figure.name for _, figures in all_figures(read_results(tmp_path)) for figure in figures]
    assert len(names) == len(set(names)) == 8


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([20, 3000], ("20", "50", "100", "200", "500", "1,000", "2,000")),
        ([45.0, 52.0], ("46", "48", "50", "52")),
        ([3.0, 3.0], ("3",)),
        ([], ()),
    ],
)
def test_logarithmic_ticks_suit_the_spread(values: list[float], labels: tuple[str, ...]) -> None:
    axis = log_axis("perplexity", values)
    assert set(labels) <= set(axis.labels)
    assert len(axis.labels) <= 9


def test_one_figure_of_a_comparison_names_each_line_once() -> None:
    figure = comparison_figure(as_group(result_file(fixtures.lengths())))
    assert [panel.title for panel in figure.panels][-1] == "Stage by stage, 256 tokens"
    labels = [[series.label for series in panel.series] for panel in figure.panels if isinstance(panel, LinePanel)]
    assert labels == [["stock", "control", *(f"{scheme}, healed" for scheme in fixtures.SCHEMES)]] * 3


def test_figures_of_one_model_on_other_texts_are_told_apart(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        fixtures.write(tmp_path / name, "compare", fixtures.lengths() | {"texts": [{"name": name, "sha256": name}]})
    variants = {figure.variant for _, own in all_figures(read_results(tmp_path)) for figure in own}
    assert {"healed, on one.txt", "healed, on two.txt"} <= variants

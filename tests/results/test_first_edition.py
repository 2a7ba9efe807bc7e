"""Results that were written before there was one table of kinds: they are read, drawn, and shown on model cards.

The files in first_edition are as they were written, but for biases, healing and staged/compare, of which some rows are
left out.
"""

import json
import shutil
from pathlib import Path

import pytest

from hf_posswap.hub import card_of
from hf_posswap.reporting.catalogue import all_figures
from hf_posswap.reporting.figures import HeatPanel, LinePanel
from hf_posswap.reporting.report import write_report
from hf_posswap.results.groups import read_results
from hf_posswap.results.kinds import KINDS
from hf_posswap.results.reading import read_result

FOLDER = Path(__file__).parent / "first_edition"
LATER = {"search", "ruler", "needle-retrieval"}
"""Kinds that the first edition did not write."""
CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "gpt2-t5"


def test_every_file_is_read_with_all_its_rows() -> None:
    files = [file for group in read_results(FOLDER).groups for file in group.files]
    assert {file.path for file in files} == {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.json")}
    assert {file.kind.name for file in files} == set(KINDS) - LATER
    for file in files:
        written = json.loads((FOLDER / file.path).read_text(encoding="utf-8"))
        if "rows" in written:
            assert all(row | old == row for row, old in zip(file.rows, written["rows"], strict=True))
        assert {"model", "scheme", "stage", "seed", "note"} <= set(file.rows[0])


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "results")
    report = write_report(tmp_path / "results")
    assert report.notes == ()
    drawn = {path.stem for path in report.images}
    figures = {figure.name: figure for _, own in all_figures(read_results(FOLDER)) for figure in own}
    assert drawn == set(figures)
    assert "passkey-demo-gpt2" in drawn
    maps = [panel for panel in figures["passkey-demo-gpt2"].panels if isinstance(panel, HeatPanel)]
    rows = read_result(FOLDER / "passkey" / "passkey.json").rows
    shares = {(row["depth"], row["length"]): row["correct"] for row in rows}
    assert [value for line in maps[0].values for value in line] == [shares[place] for place in sorted(shares)]


def test_a_healing_with_every_step_is_drawn_as_cosines() -> None:
    group = next(group for group in read_results(FOLDER).groups if group.family == "agreement")
    evaluation = json.loads((FOLDER / "healing" / "healing.json").read_text(encoding="utf-8"))["evaluation"]
    _, figures = next(chapter for chapter in all_figures(read_results(FOLDER)) if chapter[0] == group.model)
    figure = next(figure for figure in figures if figure.name.startswith("length") and figure.variant == "healed")
    (panel,) = figure.panels
    assert isinstance(panel, LinePanel)
    (line,) = (series for series in panel.series if series.key == "rope")
    assert line.y == pytest.approx([row["cosine"] for row in evaluation["healed"]])


def test_a_checkpoint_with_records_of_then_has_its_card(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2-t5"
    shutil.copytree(CHECKPOINT, folder)
    (folder / "expected.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["pos_scheme"] |= {"healed": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    healing = json.loads((FOLDER / "healing" / "healing.json").read_text(encoding="utf-8"))
    healing |= {"pos_scheme": config["pos_scheme"], "scheme": "t5"}
    (folder / "healing.json").write_text(json.dumps(healing), encoding="utf-8")
    card = str(card_of(folder))
    last = healing["evaluation"]["healed"][0]["cosine"]
    assert f"{last:.4f}" in card
    assert f"| tokens | {healing['healing']['tokens']:,} |" in card

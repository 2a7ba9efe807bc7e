"""An interrupted comparison goes on where it stopped; one with other settings is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_posswap.errors import PosSwapError
from hf_posswap.experiments import comparison
from hf_posswap.experiments.cells import Outcome
from hf_posswap.experiments.comparison import run
from hf_posswap.experiments.preparation import prepare
from hf_posswap.experiments.record import Record, remove_record
from hf_posswap.experiments.settings import ComparisonSettings, recipe
from hf_posswap.results.files import OutputError
from hf_posswap.results.writing import write_result
from tests.experiments.helpers import Make, Recorder, numbers


def test_an_interrupted_comparison_goes_on_to_the_same_files(healed: Make, tmp_path: Path) -> None:
    settings = healed(lengths=(64,), schemes=("t5:per_layer=true",))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run(prepare(settings), folder=whole)
    # Broken off after stock, control, swapped and calibrated: the way to healed leads through both once more.
    with pytest.raises(KeyboardInterrupt):
        run(prepare(settings), Recorder(interrupt_after=4), broken)
    left = json.loads((broken / "compare.json").read_text())
    assert not left["complete"]
    assert [cell["stage"] for cell in left["cells"]] == ["stock", "control", "swapped", "calibrated"]
    recorder = Recorder()
    result = run(prepare(settings), recorder, broken)
    assert len(recorder.already) == 4
    assert [outcome.cell.stage for outcome in recorder.outcomes] == ["healed"]
    assert "measuring" not in {what for _, stage, what in recorder.activities if stage != "healed"}
    assert result["complete"]
    assert (broken / "compare.csv").read_bytes() == (whole / "compare.csv").read_bytes()


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measuring without a model: the names of the cells that were measured."""
    names: list[str] = []

    def walk(prepared: Any, lane: Any, wanted: Any, first_start: Any, observer: Any) -> Iterator[Outcome]:
        for cell in lane.cells:
            if cell.stage in wanted:
                names.append(f"{cell} {cell.seed}")
                row = {"model": "m", "scheme": cell.scheme, "stage": cell.stage, "seed": cell.seed}
                values = {"protocol": "windows", "length": 64, "loss": 1 / 3, "perplexity": 1.4, "loss_low": None}
                more = {"loss_high": None, "tokens": 1, "windows": 1, "note": ""}
                yield Outcome(cell, "measured", rows=[row | values | more], facts={"start": lane.scheme})

    monkeypatch.setattr(comparison, "walk", walk)
    return names


def measured(settings: ComparisonSettings, folder: Path, walked: list[str]) -> list[str]:
    walked.clear()
    run(prepare(settings), folder=folder)
    return list(walked)


def test_schemes_seeds_and_the_control_may_be_added_later(healed: Make, tmp_path: Path, walked: list[str]) -> None:
    small = healed(schemes=("t5",), control=False, calibrate=False)
    assert measured(small, tmp_path, walked) == ["stock 0", "t5 swapped 0", "t5 healed 0"]
    assert measured(small, tmp_path, walked) == []
    more = healed(schemes=("rope", "t5"), control=True, calibrate=False)
    assert measured(more, tmp_path, walked) == ["stock control 0", "rope swapped 0", "rope healed 0"]
    most = healed(schemes=("rope", "t5"), control=True, calibrate=False, seeds=2)
    assert measured(most, tmp_path, walked) == [
        "stock control 1",
        "rope swapped 1",
        "rope healed 1",
        "t5 swapped 1",
        "t5 healed 1",
    ]
    saved = json.loads((tmp_path / "compare.json").read_text())
    schemes = list(dict.fromkeys(cell["scheme"] for cell in saved["cells"]))
    assert schemes == ["stock", "rope", "t5"], "the result has the order asked for"
    with pytest.raises(OutputError, match=r"with more schemes: \['rope', 't5'\] there, \['t5'\] now"):
        measured(healed(schemes=("t5",), calibrate=False, seeds=2), tmp_path, walked)
    with pytest.raises(OutputError, match="more seeds: 2 there, 1 now. Use the settings of that run"):
        measured(more, tmp_path, walked)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 512}, "another tokens: 300 there, 512 now"),
        ({"lengths": (64,)}, r"another lengths: \[64, 300\] there, \[64\] now"),
        ({"texts": ("demo:book/valid",)}, "another texts: "),
        ({"train_texts": ("demo:books/train",)}, "another train_texts: "),
        ({"healing": recipe(192, length=16, batch_size=2, precision="no")}, "another tokens: 96 there, 192 now"),
        ({"calibrate": False}, "another calibrate: True there, False now"),
        ({"seed": 1}, "another seed: 0 there, 1 now"),
    ],
)
def test_other_settings_are_refused(
    healed: Make, values: dict[str, Any], message: str, tmp_path: Path, walked: list[str]
) -> None:
    measured(healed(), tmp_path, walked)
    before = (tmp_path / "compare.json").read_bytes()
    with pytest.raises(PosSwapError, match=message):
        measured(healed(**values), tmp_path, walked)
    assert walked == []
    assert (tmp_path / "compare.json").read_bytes() == before


def test_a_text_that_was_changed_since_is_refused(changed: Make, tmp_path: Path, walked: list[str]) -> None:
    book = tmp_path / "book.txt"
    book.write_text("The sea was calm. " * 60, encoding="utf-8")
    settings = changed(texts=(str(book),), lengths=(64,))
    measured(settings, tmp_path, walked)
    book.write_text("The sea was rough. " * 60, encoding="utf-8")
    with pytest.raises(OutputError, match="another texts: "):
        measured(settings, tmp_path, walked)


def test_other_versions_would_mix_numbers(changed: Make, tmp_path: Path, walked: list[str]) -> None:
    measured(changed(), tmp_path, walked)
    path = tmp_path / "compare.json"
    saved = json.loads(path.read_text())
    saved["environment"]["versions"]["torch"] = "2.0"
    path.write_text(json.dumps(saved))
    with pytest.raises(OutputError, match="another torch: '2.0' there"):
        measured(changed(), tmp_path, walked)


@pytest.mark.parametrize("content", ["", "half of {", "[]", '{"rows": 3}', '{"rows": [], "format_version": 99}'])
def test_a_result_that_cannot_be_read_is_named(changed: Make, content: str, tmp_path: Path, walked: list[str]) -> None:
    (tmp_path / "compare.json").write_text(content)
    with pytest.raises(PosSwapError, match=r"compare\.json"):
        measured(changed(), tmp_path, walked)
    assert walked == []


def test_a_result_from_before_there_were_stages_is_not_gone_on_from(
    changed: Make, tmp_path: Path, walked: list[str]
) -> None:
    row = {"scheme": "stock", "protocol": "windows", "length": 64, "loss": 4.0}
    (tmp_path / "compare.json").write_text(json.dumps({"format_version": 1, "rows": [row], "settings": {}}))
    with pytest.raises(OutputError, match="of an earlier version of hf_posswap"):
        measured(changed(), tmp_path, walked)


def test_a_full_disk_says_that_what_was_measured_is_kept(
    changed: Make, tmp_path: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_posswap.experiments.record.write_result", full)
    with pytest.raises(OutputError, match=r"compare.*No space left on device.*make room"):
        measured(changed(), tmp_path, walked)


def test_numbers_read_back_are_the_numbers_written(changed: Make, tmp_path: Path, walked: list[str]) -> None:
    prepared = prepare(changed())
    result = run(prepared, folder=tmp_path)
    again = Record(prepared, tmp_path).result()
    assert numbers(again) == numbers(result)
    assert again["environment"] == result["environment"], "nothing was measured since"


def test_what_is_written_has_the_order_asked_for_last(changed: Make, tmp_path: Path, walked: list[str]) -> None:
    for schemes in (("rope", "t5"), ("t5", "rope")):
        measured(changed(schemes=schemes), tmp_path, walked)
        saved = json.loads((tmp_path / "compare.json").read_text())
        assert list(dict.fromkeys(cell["scheme"] for cell in saved["cells"])) == ["stock", *schemes]
    assert walked == []


def test_a_comparison_is_written_once_for_each_cell(
    changed: Make, tmp_path: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def write(result: dict[str, Any], folder: Path) -> list[Path]:
        written.append(len(result["cells"]))
        return write_result(result, folder)

    monkeypatch.setattr("hf_posswap.experiments.record.write_result", write)
    measured(changed(schemes=("t5",)), tmp_path, walked)
    assert written == list(range(1, len(walked) + 1))


def test_the_files_of_a_comparison_are_removed_and_others_stay(tmp_path: Path) -> None:
    for name in ("compare.json", "compare.csv", "compare.png", "notes.txt"):
        (tmp_path / name).write_text("")
    remove_record(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

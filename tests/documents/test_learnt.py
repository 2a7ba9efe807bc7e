"""What writes numbers from result files into pages: seeds merged, the source with more seeds chosen, marks kept."""

import csv
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.documents.blocks import ROOT

HEALED = 224_000


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("study_values")


def comparison(folder: Path, losses: dict[tuple[str, str, int], list[float | None]], rate: float = 1e-3) -> Path:
    """Write a compare.json with losses by scheme, stage and length, one for each seed, healed at a rate."""
    rows = [
        {"scheme": scheme, "stage": stage, "seed": seed, "protocol": "same-targets", "length": length, "loss": loss}
        for (scheme, stage, length), of_seeds in losses.items()
        for seed, loss in enumerate(of_seeds)
    ]
    schemes = [name for name in dict.fromkeys(name for name, *_ in losses) if name != "stock"]
    settings = {"schemes": schemes, "lengths": [256, 512], "seeds": 1, "healing": {"learning_rate": rate}}
    result = {"format_version": 1, "kind": "comparison", "train_length": 256, "settings": settings, "rows": rows}
    path = folder / f"compare-{rate:g}.json"
    path.write_text(json.dumps(result))
    return path


def small_study(folder: Path, cells: dict[tuple[str, str, int], list[float]]) -> Path:
    """Write a gpt2.csv with nats above stock by scheme, start and tokens, one for each seed."""
    path = folder / "gpt2.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("scheme", "start", "tokens", "seed", "length", "above_stock"))
        for (scheme, start, tokens), of_seeds in cells.items():
            writer.writerows((scheme, start, tokens, seed, 256, value) for seed, value in enumerate(of_seeds))
    return path


def test_seeds_are_merged_and_stock_is_taken_off(values: ModuleType, tmp_path: Path) -> None:
    losses = {("stock", "stock", 256): [4.0], ("alibi", "healed", 256): [4.1, 4.3], ("alibi", "healed", 512): [None]}
    found = values.Comparison(comparison(tmp_path, losses))
    assert values.text(found.above("alibi", "healed", 256)) == "0.200 (0.100–0.300)"
    assert found.above("alibi", "healed", 512) is None
    assert found.last_stage("alibi") == "healed"
    assert values.text(None) == "—"


def test_the_source_with_more_seeds_speaks_of_a_scheme(values: ModuleType, tmp_path: Path) -> None:
    losses = {
        ("stock", "stock", 256): [4.0],
        **{(scheme, stage, 256): [4.5] for scheme in ("alibi", "t5") for stage in ("swapped", "healed")},
    }
    cells = {("t5", "calibrated", HEALED): [0.1, 0.2], ("t5", "uncalibrated", 0): [1.0]}
    study = values.Comparison(comparison(tmp_path, losses))
    evidence = values.Evidence([study], values.SmallStudy(small_study(tmp_path, cells)), HEALED)
    assert [evidence.source(scheme).name for scheme in ("alibi", "t5")] == ["compare", "study-small"]
    assert evidence.above("alibi", "healed", 256).y == pytest.approx(0.5)
    assert evidence.above("t5", "healed", 256).y == pytest.approx(0.15)
    assert evidence.above("t5", "swapped", 256).y == pytest.approx(1.0)
    assert evidence.at("alibi", 3e-4) is None


def test_the_rate_that_healed_a_scheme_better_speaks_of_it(values: ModuleType, tmp_path: Path) -> None:
    def study(rate: float, healed: dict[str, list[float]]) -> object:
        losses = {(scheme, "healed", 256): loss for scheme, loss in healed.items()}
        swapped = {(scheme, "swapped", 256): [5.0] for scheme in healed}
        return values.Comparison(comparison(tmp_path, {("stock", "stock", 256): [4.0], **swapped, **losses}, rate))

    studies = [study(1e-3, {"alibi": [4.1], "rope": [4.3]}), study(3e-4, {"alibi": [4.2], "rope": [4.2], "t5": [4.4]})]
    cells = {("t5", "gentle", HEALED): [0.2, 0.3], ("control", "stock", HEALED): [0.05]}
    evidence = values.Evidence(studies, values.SmallStudy(small_study(tmp_path, cells)), HEALED)
    told = {scheme: (evidence.source(scheme).name, evidence.source(scheme).rate) for scheme in ("alibi", "rope", "t5")}
    assert told == {"alibi": ("compare", 1e-3), "rope": ("compare", 3e-4), "t5": ("study-small", 3e-4)}
    assert evidence.comparison("alibi") is studies[0]
    assert evidence.comparison("t5") is studies[1]
    assert evidence.rates == [3e-4, 1e-3]
    assert evidence.control(1e-3).y == pytest.approx(0.05)
    assert evidence.control(3e-4) is None


def test_rates_are_compared_within_one_study(values: ModuleType, tmp_path: Path) -> None:
    losses = {("stock", "stock", 256): [4.0], ("t5", "healed", 256): [4.1, 4.1], ("rope", "healed", 256): [4.2]}
    studies = [values.Comparison(comparison(tmp_path, losses, rate)) for rate in (3e-4,)]
    studies.append(values.Comparison(comparison(tmp_path, {("stock", "stock", 256): [4.0]}, 1e-3)))
    cells = {("t5", start, HEALED): [0.3] for start in ("calibrated", "gentle")}
    evidence = values.Evidence(studies, values.SmallStudy(small_study(tmp_path, cells)), HEALED)
    assert evidence.at("t5", 3e-4).name == "compare", "more seeds"
    assert [(source.name, source.rate) for source in evidence.at_every_rate("t5")] == [
        ("study-small", 3e-4),
        ("study-small", 1e-3),
    ]
    assert evidence.at_every_rate("rope") == []


def test_losses_by_position_are_weighed_by_tokens(values: ModuleType) -> None:
    stretches = ((0, 64, 3.0, 63), (64, 128, 2.0, 64), (128, 256, None, 0))
    rows = [
        {"length": 256, "position_from": low, "position_to": high, "loss": loss, "tokens": tokens}
        for low, high, loss, tokens in stretches
    ]
    assert values.mean_by_position(rows, 256, 0, 128) == pytest.approx((3 * 63 + 2 * 64) / 127)
    assert values.mean_by_position(rows, 256, 128, 256) is None


def test_text_goes_between_its_marks_and_nowhere_else(values: ModuleType) -> None:
    marked = importlib.import_module("marked")
    page = "before\n<!-- start x: written by docs/a.py -->\nold\n<!-- end x: written by docs/a.py -->\nafter"
    written = marked.between(page, "x", "new\n", "a.py")
    assert written == page.replace("\nold\n", "\n\nnew\n\n")
    assert marked.between(written, "x", "new", "a.py") == written
    with pytest.raises(ValueError, match="no '<!-- start y"):
        marked.between(page, "y", "new", "a.py")


@pytest.fixture
def llama(values: ModuleType) -> ModuleType:
    return importlib.import_module("learnt_llama")


def cells_of(table: str) -> dict[str, list[str]]:
    """Return the rows of a Markdown table by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {first: rest for first, *rest in rows}


def test_llama_is_told_at_every_stage_beside_its_control(llama: ModuleType, tmp_path: Path) -> None:
    losses = {("stock", "stock", length): [loss] for length, loss in ((512, 3.0), (2048, 2.5))}
    losses |= {("stock", "control", 512): [3.1], ("t5", "healed", 512): [3.25], ("rope", "swapped", 512): [3.0]}
    assert llama.healed(tmp_path) == "Not measured yet."
    comparison(tmp_path, losses).rename(tmp_path / "compare.json")
    assert cells_of(llama.healed(tmp_path)) == {
        "`t5`": ["—", "—", "0.250; —"],
        "control": ["", "", "0.100; —"],
    }


def test_pass_keys_are_the_mean_over_depths(llama: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"scheme": "stock", "length": length, "depth": depth, "correct": correct, "exact": 0.5, "trials": 10}
        for length, depth, correct in ((256, 0.0, 1.0), (256, 1.0, 0.5), (512, 0.0, None))
    ]
    (tmp_path / "stock").mkdir()
    content = {"format_version": 1, "kind": "passkey", "rows": rows}
    (tmp_path / "stock" / "passkey.json").write_text(json.dumps(content))
    assert cells_of(llama.passkeys(tmp_path)) == {"stock": ["0.75; 0.50", "—"]}

"""A search: what stays, what it costs, and that it goes on after an interruption."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from hf_posswap.calibration import calibration_refusal
from hf_posswap.commands import app
from hf_posswap.common.options import option_types
from hf_posswap.errors import PosSwapError, UnknownNameError, UnsupportedError
from hf_posswap.evaluation.errors import TextTooShortError
from hf_posswap.experiments import candidates, stages
from hf_posswap.experiments.cells import Cell
from hf_posswap.experiments.halving import round_sizes
from hf_posswap.experiments.search import run_search
from hf_posswap.experiments.search_preparation import prepare_search, step_tokens
from hf_posswap.experiments.search_record import remove_search
from hf_posswap.experiments.settings import SearchSettings, recipe
from hf_posswap.results.files import OutputError
from hf_posswap.results.reading import read_result
from hf_posswap.schemes import parse_scheme, schemes
from hf_posswap.sources import load_config, load_model, load_tokenizer
from hf_posswap.swapped.questions import is_swapped
from hf_posswap.training import HealingError
from tests import proteins
from tests.experiments.helpers import STEP, Recorder, numbers

pytestmark = pytest.mark.filterwarnings("ignore::hf_posswap.calibration.CalibrationWarning")
Make = Callable[..., SearchSettings]


def test_each_round_keeps_the_better_half_and_the_winner_is_the_best_of_the_last(searched: Any) -> None:
    _, result, folder = searched
    rounds = [entry["candidates"] for entry in result["rounds"]]
    assert [len(names) for names in rounds] == [5, *round_sizes(5)], "three wholes and two mixes, then the halves"
    goal = result["objective"]
    assert "0.05 nats" in goal
    stock = next(row["loss"] for row in result["rows"] if row["scheme"] == "stock" and row["length"] == 32)
    loss = {(row["scheme"], row["round"], row["length"]): row["loss"] for row in result["rows"]}
    for number, names in enumerate(rounds[:-1]):
        scores = {name: loss[name, number, 64] + max(0.0, loss[name, number, 32] - stock - 0.05) for name in names}
        assert rounds[number + 1] == sorted(names, key=scores.__getitem__)[: len(rounds[number + 1])]
    assert result["winner"] in rounds[-1]
    assert result["ranking"][0]["scheme"] == result["winner"]
    assert [entry["rank"] for entry in result["ranking"]] == [1, 2, 3, 4, 5]
    last = [entry["round"] for entry in result["ranking"]]
    assert last == sorted(last, reverse=True)
    assert result["ranking"][0]["loss_low"] < result["ranking"][0]["loss"] < result["ranking"][0]["loss_high"]
    assert result["complete"]
    assert read_result(folder / "search.json").facts["winner"] == result["winner"]


def test_schemes_that_are_one_function_before_they_are_healed_are_both_healed(search: Any, tmp_path: Path) -> None:
    settings = search(schemes=("cable", "fox"))
    result = run_search(prepare_search(settings), folder=tmp_path)
    assert [sorted(entry["candidates"]) for entry in result["rounds"]] == [["cable", "fox"]] * 2
    assert 0 < result["budget"]["used"] <= settings.healing.tokens
    assert {entry["healing_tokens"] for entry in result["ranking"]} == {3 * STEP}


def test_the_budget_is_kept_and_what_was_used_is_recorded(searched: Any) -> None:
    given, result, _ = searched
    assert result["budget"] == {"tokens": 13 * STEP, "used": result["budget"]["used"]}
    read = [cell["healing"]["tokens"] for cell in result["cells"] if "healing" in cell]
    assert len(read) == 3 + 2
    assert sum(read) == result["budget"]["used"] <= given.tokens
    healed = {entry["scheme"]: entry["healing_tokens"] for entry in result["ranking"]}
    assert sum(healed.values()) == sum(read)
    of_rounds = {row["round"]: row["healing_tokens"] for row in result["rows"] if row["scheme"] == result["winner"]}
    assert list(of_rounds.values()) == sorted(of_rounds.values())
    assert of_rounds[0] == 0 < of_rounds[1] < of_rounds[2] == healed[result["winner"]]


def test_mixes_keep_the_most_costly_layers_native(searched: Any) -> None:
    _, result, _ = searched
    layers = result["mixes"]["layers"]
    assert [entry["layer"] for entry in layers] == [0, 1, 2, 3]
    single = [row for row in result["rows"] if row["round"] is None]
    assert [row["length"] for row in single] == 4 * [32]
    stock = next(row["loss"] for row in result["rows"] if row["scheme"] == "stock" and row["length"] == 32)
    assert [entry["cost"] for entry in layers] == pytest.approx([row["loss"] - stock for row in single])
    base = result["mixes"]["scheme"]
    of_wholes = {row["scheme"]: row["loss"] for row in result["rows"] if row["round"] == 0 and row["length"] == 64}
    assert base in ("t5:per_layer=true", "alibi", "none")
    names = [name for name in result["rounds"][0]["candidates"] if "layers" in name]
    acting = [set(parse_scheme(name).layers or ()) for name in names]
    by_cost = sorted(layers, key=lambda entry: -entry["cost"])
    kept = [{entry["layer"] for entry in by_cost[:number]} for number in (1, 2)]
    assert acting == [{0, 1, 2, 3} - native for native in kept]
    assert all(name in of_wholes for name in names)


def test_what_is_left_is_the_winner_and_nothing_else(searched: Any) -> None:
    _, result, folder = searched
    assert sorted(path.name for path in folder.iterdir()) == ["search.csv", "search.json", "winner"]
    model = load_model(str(folder / "winner"))
    assert is_swapped(model)
    assert load_tokenizer(str(folder / "winner")).vocab_size == load_tokenizer("demo:gpt2").vocab_size
    assert result["recipe"]["further"].startswith(f"hf-posswap finetune --model {folder / 'winner'} --stock ")


class Interrupting(Recorder):
    """Interrupts a search after its first new cell, or in the middle of healing the first time it comes to it."""

    def __init__(self, healing: set[Cell]) -> None:
        super().__init__(interrupt_after=1)
        self.healing = healing

    def step(self, row: dict[str, Any]) -> None:
        if self.current not in self.healing:
            self.healing.add(self.current)
            raise KeyboardInterrupt


def test_a_search_that_is_interrupted_everywhere_comes_to_the_same_result(searched: Any, tmp_path: Path) -> None:
    given, whole, folder = searched
    healing: set[Cell] = set()
    interruptions = 0
    most = 0
    while True:
        try:
            result = run_search(prepare_search(given), Interrupting(healing), tmp_path)
            break
        except KeyboardInterrupt:
            interruptions += 1
            kept = list((tmp_path / "search-models").iterdir()) if (tmp_path / "search-models").is_dir() else []
            most = max(most, len(kept))
    assert interruptions == len(whole["cells"]) + len(healing)
    assert len(healing) == 3 + 2
    assert most <= 4, "what may still win, and the one that is being healed"
    assert numbers(result) == numbers(whole)
    assert (tmp_path / "search.csv").read_bytes() == (folder / "search.csv").read_bytes()
    assert result["ranking"] == whole["ranking"]
    ours, theirs = (load_file(place / "winner" / "model.safetensors") for place in (tmp_path, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    recorder = Recorder()
    assert numbers(run_search(prepare_search(given), recorder, tmp_path)) == numbers(whole)
    assert recorder.outcomes == [], "a search that is complete measures nothing again"
    assert (tmp_path / "winner").is_dir()
    shutil.rmtree(tmp_path / "winner")
    with pytest.raises(OutputError, match="is not in .* any more"):
        run_search(prepare_search(given), folder=tmp_path)


def test_the_recipe_makes_the_winner_anew(searched: Any, tmp_path: Path) -> None:
    _, result, folder = searched
    commands = [*result["recipe"]["again"], result["recipe"]["further"]]
    for command in commands:
        elsewhere = command.replace(f"{folder}/recipe-", f"{tmp_path}/recipe-").replace(
            f"{folder}/healed", f"{tmp_path}/healed"
        )
        done = CliRunner().invoke(app, shlex.split(elsewhere)[1:])
        assert done.exit_code == 0, done.output
    made = load_file(tmp_path / "recipe-2" / "model.safetensors")
    won = load_file(folder / "winner" / "model.safetensors")
    assert made.keys() == won.keys()
    assert all(torch.equal(made[name], won[name]) for name in won)


def test_a_candidate_whose_healing_fails_leaves_the_search(
    search: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, all_of_them = tmp_path / "one", tmp_path / "all"
    one.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run_search(prepare_search(search()), Recorder(interrupt_after=4), one)
    shutil.copytree(one, all_of_them)
    heal, calls = stages.heal, []

    def diverging(model: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(model)
        if len(calls) == 1:
            raise HealingError("training has diverged")
        return heal(model, *arguments, **options)

    monkeypatch.setattr(stages, "heal", diverging)
    result = run_search(prepare_search(search()), folder=one)
    failed, other = result["rounds"][1]["candidates"]
    assert result["winner"] == other
    entry = next(entry for entry in result["ranking"] if entry["scheme"] == failed)
    assert (entry["round"], entry["fate"], entry["reason"]) == (0, "failed", "training has diverged")

    def diverge(*_: Any, **__: Any) -> Any:
        raise HealingError("no")

    monkeypatch.setattr(stages, "heal", diverge)
    with pytest.raises(PosSwapError, match="ended after round 1, because every candidate in it failed"):
        run_search(prepare_search(search()), folder=all_of_them)


def test_folders_of_something_else_are_left_alone(search: Make, tmp_path: Path) -> None:
    (tmp_path / "winner").mkdir()
    (tmp_path / "winner" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"winner' is there already.*another --output-dir, or --overwrite"):
        run_search(prepare_search(search()), folder=tmp_path)
    assert (tmp_path / "winner" / "notes.txt").read_text() == "mine"
    remove_search(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_candidate_is_healed_on_the_whole_budget(search: Make) -> None:
    result = run_search(prepare_search(search(schemes=("alibi",), tokens=3 * STEP + 5)))
    assert result["winner"] == "alibi"
    assert result["budget"]["used"] == 3 * STEP
    assert "uncalibrated" in next(cell for cell in result["cells"] if cell["stage"] == "round 0")


def test_a_model_that_was_removed_is_missed(search: Make, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_search(prepare_search(search()), Recorder(interrupt_after=4), tmp_path)
    shutil.rmtree(tmp_path / "search-models")
    with pytest.raises(OutputError, match=r"after round 0 is not in .* any more.*--overwrite to start anew"):
        run_search(prepare_search(search()), folder=tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 48}, "another length: 64 there, 48 now"),
        ({"lost": 0.1}, "another lost: 0.05 there, 0.1 now"),
        ({"tokens": 7 * STEP}, "another tokens: 192 there, 224 now"),
        ({"schemes": ("alibi", "none")}, "a search with another schemes"),
    ],
)
def test_other_settings_than_those_of_the_folder_are_refused(
    search: Make, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_search(prepare_search(search()), Recorder(interrupt_after=1), tmp_path)
    before = (tmp_path / "search.json").read_bytes()
    with pytest.raises(OutputError, match=f"{message}.*Use the settings of that run.*--overwrite"):
        run_search(prepare_search(search(**values)), folder=tmp_path)
    assert (tmp_path / "search.json").read_bytes() == before


def test_the_default_candidates_have_the_most_freedom_that_they_declare(search: Make) -> None:
    prepared = prepare_search(search(schemes=(), tokens=10**6))
    names = {parse_scheme(name).name: parse_scheme(name) for name in prepared.candidates}
    left = {refusal.scheme: refusal.reason for refusal in prepared.left_out}
    assert names.keys() | {parse_scheme(name).name for name in left} == {scheme.name for scheme in schemes}
    assert left["learned"] == "it reads at most 32 tokens, and the target length is 64"
    for config in names.values():
        free = [name for name in candidates.FREEDOM if name in config.option_names()]
        assert all(option_types(type(config))[name] is bool and getattr(config, name) for name in free), config
    assert {"trainable": True, "per_layer": True}.items() <= names["alibi"].to_dict().items()


def test_a_free_form_has_parameters_that_calibration_can_fit_or_a_reason(tiny_llama: str) -> None:
    facts, rows = candidates.model_facts(load_config(tiny_llama))
    assert rows is None
    assert facts.train_length == 32
    model = load_model(tiny_llama)
    stages.swap(model, parse_scheme(candidates.default_candidates(facts)[0]))
    assert calibration_refusal(model) is None


def test_what_the_model_has_already_is_not_mixed_with_itself(tiny_llama: str) -> None:
    facts, _ = candidates.model_facts(load_config(tiny_llama))
    names = ("rope", "rope:yarn:factor=4", "alibi", "sinusoidal", "alibi:layers=0", "none:layers=1,alibi")
    assert [name for name in names if candidates.mixable(name, facts)] == ["rope:yarn:factor=4", "alibi"]


def test_a_model_whose_positions_end_has_no_mixes(search: Make) -> None:
    prepared = prepare_search(search(model="demo:gpt2", length=512, hybrids=True))
    assert prepared.mixing_refusal == (
        "the model's own positions are a table of 256 rows, which enters before all layers and ends before 512 tokens, "
        "so no layer can keep it"
    )
    assert prepared.mixes == 0


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"schemes": ("alibbi",)}, UnknownNameError, "Did you mean 'alibi'"),
        ({"schemes": ("learned", "alibi")}, UnsupportedError, "learned: it reads at most 32 tokens"),
        ({"schemes": ("alibi", "alibi")}, PosSwapError, "scheme 'alibi' is given twice"),
        ({"length": 32}, PosSwapError, "the target length is 32 tokens, and .* was trained on texts of 32"),
        ({"length": 10**5}, TextTooShortError, "length 100000 needs at least 100000"),
        ({"tokens": 2 * STEP - 1}, PosSwapError, "3 candidates need at least 64: one step of 32 tokens"),
        ({"train_texts": ()}, PosSwapError, "there is no text to calibrate and heal on"),
        ({"lost": -1.0}, PosSwapError, "lost is -1"),
    ],
)
def test_settings_that_cannot_be_searched_are_refused(
    search: Make, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare_search(search(**values))


def test_a_step_of_several_lengths_counts_as_its_longest_batch() -> None:
    assert step_tokens(recipe(1000, length=(16, 64), batch_size=2, precision="no"), 256) == 64
    assert step_tokens(recipe(1000, batch_size=4, precision="no"), 1024) == 4 * 512


def of_proteins(folder: Path, head: bool) -> SearchSettings:
    proteins.write(folder, head)
    for name, seed in (("test", 1000), ("train", 0)):
        lines = [proteins.sequence(200, seed + number) for number in range(12)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return SearchSettings(
        model=str(folder / "model"),
        texts=(str(folder / "test.txt"),),
        train_texts=(str(folder / "train.txt"),),
        documents="lines",
        schemes=("relative_bias", "alibi"),
        length=192,
        healing=recipe(2000, length=32, batch_size=8, precision="no"),
        calibration_tokens=256,
        eval_tokens=400,
    )


def test_masked_language_models_are_searched_by_their_masked_loss(tmp_path: Path) -> None:
    given = of_proteins(tmp_path, head=True)
    result = run_search(prepare_search(given))
    assert {row["protocol"] for row in result["rows"]} == {"masked"}
    assert result["winner"] in given.schemes
    assert 0 < result["budget"]["used"] <= 2000


def test_an_encoder_without_a_head_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PosSwapError, match="no masked-token head.*evaluate MODEL --pos-scheme SCHEME --measure"):
        prepare_search(of_proteins(tmp_path, head=False))


def test_the_result_can_be_written_as_json(searched: Any) -> None:
    _, result, folder = searched
    saved = json.loads((folder / "search.json").read_text())
    assert saved["ranking"] == result["ranking"]
    assert saved["environment"]["versions"]["torch"]
    assert saved["settings"]["healing"]["tokens"] == 13 * STEP

"""An evaluation from end to end: the files and their columns, interruption, and what is refused."""

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import hf_posswap
from hf_posswap.errors import PosSwapError, SourceError
from hf_posswap.evaluation import run
from hf_posswap.evaluation.errors import EvaluationError, TextTooShortError
from hf_posswap.evaluation.measuring import Part
from hf_posswap.evaluation.run import EvaluationObserver, prepare_evaluation, run_evaluation
from hf_posswap.evaluation.settings import EvaluationSettings
from hf_posswap.results.files import OutputError
from hf_posswap.results.kinds import KINDS
from hf_posswap.sources import load_model
from hf_posswap.texts.sources import resolve_texts

BOOK = "book.txt"


@pytest.fixture(autouse=True, scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run where there is the beginning of a book, and a text too short for anything."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / BOOK).write_text(resolve_texts("demo:book/test")[0].read()[:30_000], encoding="utf-8")
    (folder / "short.txt").write_text("A short text.", encoding="utf-8")
    with contextlib.chdir(folder):
        yield


def settings(**changes: Any) -> EvaluationSettings:
    given: dict[str, Any] = {
        "model": "demo:gpt2",
        "texts": (BOOK,),
        "lengths": (300, 70),
        "tokens": 300,
        "depths": (0.5,),
        "trials": 2,
        "bins": 2,
    }
    return EvaluationSettings(**given | changes)


class Recorder(EvaluationObserver):
    """Writes down what it hears, and may break the run off when a part begins."""

    def __init__(self, break_at: int | None = None) -> None:
        self.finished: list[str] = []
        self.begun: list[str] = []
        self.read, self.planned, self.break_at = 0, 0, break_at

    def started(self, parts: Sequence[Part], finished: Sequence[Part]) -> None:
        self.finished = [part.name for part in finished]
        self.planned = sum(part.tokens for part in parts if "300" not in part.name)

    def part(self, part: Part) -> None:
        if len(self.begun) == self.break_at:
            raise KeyboardInterrupt
        self.begun.append(part.name)

    def tokens(self, count: int) -> None:
        self.read += count


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


PARTS = [
    *("windows-70", "windows-300", "key-tokens-choice", "same-targets-70", "same-targets-300"),
    *("passkey-70", "passkey-300"),
]
PROTOCOLS = ("windows", "same-targets", "key-tokens")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]], Recorder]:
    folder, recorder = tmp_path_factory.mktemp("whole"), Recorder()
    return folder, run_evaluation(prepare_evaluation(settings()), folder, observer=recorder), recorder


def test_a_causal_model_is_measured_by_all_that_fits(whole: tuple[Path, dict[str, Any], Recorder]) -> None:
    folder, results, recorder = whole
    assert recorder.begun == PARTS
    assert recorder.read == recorder.planned
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(f"{name}.{ending}" for name in results for ending in ("csv", "json"))
    assert list(results) == ["lengths", "positions", "passkey"]
    rows = {(row["protocol"], row["length"]): row for row in results["lengths"]["rows"]}
    assert set(rows) == {(protocol, length) for protocol in PROTOCOLS for length in (70, 300)}
    assert rows["windows", 70]["loss"] > 0
    assert [rows[protocol, 300]["note"] for protocol in PROTOCOLS] == ["longest position 256"] * 3
    assert rows["key-tokens", 70]["note"].startswith("none of 150 tokens is a key token")
    assert [row["length"] for row in results["positions"]["rows"]] == [70, 70, 300]
    assert [row["correct"] is None for row in results["passkey"]["rows"]] == [False, True]


def test_the_files_keep_the_contract(whole: tuple[Path, dict[str, Any], Recorder]) -> None:
    folder, results, _ = whole
    for name, result in results.items():
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert record == json.loads(json.dumps(result))
        assert (record["format_version"], record["model"], record["seed"]) == (1, "demo:gpt2", 0)
        assert record["settings"]["lengths"] == [70, 300]
        assert record["texts"][0]["name"] == BOOK
        assert record["texts"][0]["tokens"] == 8077
        assert len(record["texts"][0]["sha256"]) == 64
        assert record["environment"]["versions"]["torch"]
        assert all(tuple(row) == KINDS[record["kind"]].names for row in record["rows"])
        assert {(row["scheme"], row["stage"]) for row in record["rows"]} == {("stock", "stock")}
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        assert table == [
            {key: "" if value is None else str(value) for key, value in row.items()} for row in record["rows"]
        ]


@pytest.mark.parametrize("after", [1, 3, 5])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    whole: tuple[Path, dict[str, Any], Recorder], tmp_path: Path, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(prepare_evaluation(settings()), tmp_path, observer=Recorder(break_at=after))
    assert not list(tmp_path.glob("*.csv"))
    recorder = Recorder()
    run_evaluation(prepare_evaluation(settings()), tmp_path, observer=recorder)
    assert (recorder.finished, recorder.begun) == (PARTS[:after], PARTS[after:])
    assert not (tmp_path / "unfinished").exists()
    for path in whole[0].glob("*.csv"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_an_unfinished_evaluation_with_other_settings_is_refused(tmp_path: Path) -> None:
    few = {"measurements": ("loss",), "lengths": (70,)}
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(prepare_evaluation(settings(**few)), tmp_path, observer=Recorder(break_at=1))
    other = prepare_evaluation(settings(**few, seed=5))
    with pytest.raises(OutputError, match="unfinished measurement with another seed: 0 there, 5 now"):
        run_evaluation(other, tmp_path)
    results = run_evaluation(other, tmp_path, overwrite=True)
    assert results["lengths"]["seed"] == 5


def test_results_are_replaced_only_if_asked_for(whole: tuple[Path, dict[str, Any], Recorder], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"holds results already: lengths.json, positions.json, passkey.json"):
        run_evaluation(prepare_evaluation(settings()), whole[0])
    (tmp_path / "lengths.json").write_text("{}")
    passkey = settings(measurements=("passkey",), lengths=(70,))
    assert list(run_evaluation(prepare_evaluation(passkey), tmp_path)) == ["passkey"], "other files are left alone"
    assert (tmp_path / "lengths.json").read_text() == "{}"


def test_a_finished_measurement_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off after the last part, before the files: they are written from what is kept."""
    few = prepare_evaluation(settings(measurements=("positions",), lengths=(70,)))
    with monkeypatch.context() as context:
        context.setattr(run, "write_result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(few, tmp_path)
    monkeypatch.setattr(run, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert len(run_evaluation(few, tmp_path)["positions"]["rows"]) == 2


def test_a_disk_that_is_full_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_result", full)
    with pytest.raises(PosSwapError, match="No space left on device.*run the same command again"):
        run_evaluation(prepare_evaluation(settings(measurements=("positions",), lengths=(70,))), tmp_path)


def test_sliding_windows_are_measured_if_they_are_named(tmp_path: Path) -> None:
    given = settings(measurements=("sliding",), lengths=(64, 128), stride=16)
    rows = run_evaluation(prepare_evaluation(given), tmp_path)["lengths"]["rows"]
    assert [(row["protocol"], row["length"]) for row in rows] == [("sliding", 64), ("sliding", 128)]
    assert len({row["tokens"] for row in rows}) == 1, "the same tokens at every length"
    assert rows[1]["loss"] < rows[0]["loss"]
    with pytest.raises(EvaluationError, match="the stride is 64 tokens, and the shortest window has 64"):
        prepare_evaluation(settings(measurements=("sliding",), lengths=(64, 128), stride=64))


def test_a_scheme_is_swapped_in_first(tmp_path: Path) -> None:
    swapped = settings(pos_scheme="alibi", measurements=("loss",), stage="calibrated")
    rows = run_evaluation(prepare_evaluation(swapped), tmp_path)["lengths"]["rows"]
    assert {(row["scheme"], row["stage"], row["note"]) for row in rows} == {("alibi", "calibrated", "")}


@pytest.mark.parametrize("scheme", ["rope:yarn:factor=8", "alibi:trainable=true:per_layer=true", "rope"])
def test_a_swapped_checkpoint_is_measured_under_its_scheme(tmp_path: Path, scheme: str) -> None:
    hf_posswap.swap(load_model("demo:gpt2"), scheme).save_pretrained(tmp_path)
    hf_posswap.sources.load_tokenizer("demo:gpt2").save_pretrained(tmp_path)
    given = settings(model=str(tmp_path), lengths=(70,), tokens=70, measurements=("loss",))
    result = run_evaluation(prepare_evaluation(given), tmp_path / "out")["lengths"]
    assert {(row["scheme"], row["stage"]) for row in result["rows"]} == {(scheme, "swapped")}
    assert result["pos_scheme"]["name"] == scheme.split(":")[0]
    with pytest.raises(EvaluationError, match="is swapped already"):
        prepare_evaluation(settings(model=str(tmp_path), pos_scheme="alibi"))


def test_an_encoder_is_measured_by_retrieval(tmp_path: Path) -> None:
    encoder = settings(model="demo:bert", lengths=(64, 600), document_tokens=128, most_documents=12)
    result = run_evaluation(prepare_evaluation(encoder), tmp_path)["retrieval"]
    assert [row["value"] is None for row in result["rows"]] == [False] * 3 + [True] * 3
    assert (result["documents"], result["queries_deeper_than"]) == (12, 63)
    assert result["chance"]["recall@1"] == pytest.approx(1 / 12)


def test_a_masked_language_model_is_measured_by_masked_tokens_too(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    BertForMaskedLM.from_pretrained(hf_posswap.sources.resolve_model("demo:bert").path).save_pretrained(tmp_path)
    hf_posswap.sources.load_tokenizer("demo:bert").save_pretrained(tmp_path)
    given = settings(model=str(tmp_path), lengths=(64,), most_documents=12)
    assert prepare_evaluation(given).settings.measurements == ("masked", "retrieval")
    masked = settings(model=str(tmp_path), lengths=(64, 600), tokens=600, measurements=("masked",))
    rows = run_evaluation(prepare_evaluation(masked), tmp_path / "out")["lengths"]["rows"]
    assert [(row["protocol"], row["loss"] is None) for row in rows] == [("masked", False), ("masked", True)]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"measurements": ("speed",)},
            EvaluationError,
            "unknown value of measurements: 'speed'. Allowed: key-tokens, loss, masked",
        ),
        ({"measurements": ("masked",)}, EvaluationError, "for it: loss, key-tokens, positions, passkey"),
        ({"model": "demo:bert", "measurements": ("loss",)}, EvaluationError, "for causal language models.*: retrieval"),
        ({"model": "demo:bert", "measurements": ("masked",)}, EvaluationError, "has no such head.*: retrieval"),
        (
            {"stage": "cooked"},
            EvaluationError,
            "unknown value of stage: 'cooked'. Allowed: calibrated, control",
        ),
        ({"dtype": "int4"}, EvaluationError, "unknown value of dtype: 'int4'. .*Allowed: bfloat16, float16, float32"),
        ({"pooling": "max"}, EvaluationError, "unknown value of pooling: 'max'"),
        ({"texts": ()}, EvaluationError, "no text given"),
        ({"lengths": ()}, EvaluationError, "no length given"),
        ({"tokens": 0}, EvaluationError, "tokens is 0; it must be at least 1"),
        ({"pos_scheme": "alibbi"}, PosSwapError, "Did you mean 'alibi'"),
        ({"texts": ("/no/such.txt",)}, SourceError, "cannot read text '/no/such.txt'"),
        ({"model": "demo:mamba"}, SourceError, "unknown demo model"),
        ({"lengths": (9000,)}, TextTooShortError, "the text has 8077 tokens, and length 9000 needs at least 9000"),
        ({"lengths": (9000,), "texts": ("short.txt",) * 2}, TextTooShortError, "each text: short.txt 5, short.txt 5"),
        ({"model": "demo:bert", "lengths": (4000,)}, TextTooShortError, "tokens, and make 1 documents of 4000"),
    ],
)
def test_wrong_settings_are_refused_before_a_model_loads(
    changes: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(error, match=message):
        prepare_evaluation(settings(**changes))


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(EvaluationError, match=f"device '{device}' cannot be used"):
            run_evaluation(prepare_evaluation(settings(device=device)), tmp_path)

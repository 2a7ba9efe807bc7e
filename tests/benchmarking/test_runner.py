"""Cells, gaps, going on where a run stopped, and what each kind of work computes."""

import csv
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_posswap.benchmarking import runner
from hf_posswap.benchmarking.dense import dense_mask, dense_model
from hf_posswap.benchmarking.files import read_rows, write_bench
from hf_posswap.benchmarking.runner import run
from hf_posswap.benchmarking.settings import BenchmarkError, BenchmarkSettings
from hf_posswap.benchmarking.shapes import stock_model, swapped_copy
from hf_posswap.benchmarking.work import attention_work, model_work
from hf_posswap.commands import app
from hf_posswap.results.files import OutputError
from hf_posswap.results.kinds import BENCH
from tests.matrix.cells import one_of_each_kind

SMALL = {"layers": 1, "repeats": 1, "lengths": (24,)}
COMMAND = ["bench", "smollm2", "--lengths", "24", "--layers", "1", "--repeats", "1"]


def settings(model: str = "smollm2", schemes: tuple[str, ...] = ("alibi",), **options: object) -> BenchmarkSettings:
    return BenchmarkSettings(model=model, schemes=schemes, **(SMALL | options))


def test_every_mode_has_a_row_with_the_columns_of_the_table() -> None:
    modes = ("prefill", "training", "decode", "attention", "attention-training")
    rows = run(settings(modes=modes, schemes=("t5",), backends=("sdpa", "dense-eager")))
    assert [(row["backend"], row["mode"]) for row in rows] == [(b, m) for b in ("sdpa", "dense-eager") for m in modes]
    for row in rows:
        assert set(BENCH.names) <= set(row)
        assert row["time_ratio_low"] <= row["time_ratio"] <= row["time_ratio_high"]
        assert row["memory_ratio"] > 0.5
        assert len(row["measured"]["seconds"]["other"]) == row["repeats"] == 1


def test_stock_against_itself_takes_the_same_memory() -> None:
    rows = run(settings(schemes=("rope",), modes=("prefill", "training", "decode")))
    assert [row["memory_ratio"] for row in rows] == pytest.approx([1, 1, 1], abs=0.01)


@pytest.mark.parametrize("scheme", ["alibi", "t5"])
@pytest.mark.parametrize("model", ["smollm2", "gpt2"])
def test_the_dense_yardstick_computes_what_the_swapped_model_does(model: str, scheme: str) -> None:
    stock = stock_model(settings(model), "float32", "sdpa")
    swapped = swapped_copy(stock, scheme)
    dense, mask = dense_model(stock), dense_mask(swapped)
    tokens = torch.randint(100, (1, 24))
    with torch.no_grad():
        actual = dense(tokens, attention_mask=mask(24, 24))[0]
        torch.testing.assert_close(actual, swapped(tokens)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [("sinusoidal", "'sinusoidal' acts at the embeddings; it has no bias"), ("rope", "here there is none")],
)
def test_the_dense_yardstick_wants_a_bias(scheme: str, message: str) -> None:
    swapped = swapped_copy(stock_model(settings("gpt2"), "float32", "sdpa"), scheme)
    with pytest.raises(BenchmarkError, match=message):
        dense_mask(swapped)(4, 4)


def test_decoding_leaves_the_cache_as_long_as_it_was() -> None:
    stock = stock_model(settings(), "float32", "sdpa")
    work = model_work("decode", stock, 24, settings())
    held = work.resident_bytes()
    work.call()
    work.call()
    assert work.resident_bytes() == held
    keys_and_values = 2 * 4 * 3 * 24 * 64
    assert held > keys_and_values


@pytest.mark.parametrize("mode", ["decode", "attention"])
def test_every_kind_of_scheme_is_measured(mode: str) -> None:
    names = tuple(cell.label for cell in one_of_each_kind() if cell.architecture == "llama")
    rows = run(settings(schemes=names, modes=(mode,)))
    assert {row["scheme"]: row["note"] for row in rows if row["time_ratio"] is None} == {}
    assert len(rows) == len(names)


def test_training_reaches_the_table_and_leaves_no_gradients() -> None:
    swapped = swapped_copy(stock_model(settings(), "float32", "sdpa"), "t5")
    seen: list[torch.Tensor] = []
    swapped.pos_scheme.table.register_hook(seen.append)
    for mode, make in (("training", model_work), ("attention-training", attention_work)):
        make(mode, swapped, 24, settings()).call()
        assert seen.pop().abs().max() > 0, mode
        assert all(parameter.grad is None for parameter in swapped.parameters())


def test_zero_tables_are_made_random() -> None:
    swapped = swapped_copy(stock_model(settings(), "float32", "sdpa"), "t5")
    assert swapped.pos_scheme.table.all()


def test_what_cannot_be_measured_is_a_gap_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = run(settings("demo:bert", ("none", "alibi"), modes=("prefill", "decode")))
    assert [row["time_ratio"] is None for row in encoder] == [True, True, False, True]
    assert "bag of words" in encoder[0]["note"]
    assert encoder[3]["note"] == "an encoder does not decode"
    bounded = run(settings("demo:gpt2", lengths=(300,), modes=("prefill",)))
    assert bounded[0]["note"] == "the stock model has 256 positions"
    flex = run(settings(modes=("training",), backends=("flex_attention",)))
    assert "no backward pass on CPU" in flex[0]["note"]
    monkeypatch.setattr(runner, "_memory", lambda device: 2**20)
    dense = run(settings(lengths=(256,), modes=("prefill",), backends=("dense-eager",)))
    assert "GiB at once" in dense[0]["note"]
    content = run(settings(schemes=("shaw",), modes=("decode",), backends=("dense-eager",)))
    assert "the same for all queries" in content[0]["note"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("prefil",)}, "unknown value of modes: 'prefil'. Did you mean 'prefill'"),
        ({"backends": ("flash",)}, "unknown value of backends: 'flash'"),
        ({"dtypes": ("int8",)}, "unknown value of dtypes: 'int8'"),
        ({"schemes": ()}, "no schemes"),
        ({"lengths": (0,)}, "lengths is 0; it must be at least 1"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        settings(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="no device 'cuda' here"):
        run(settings(device="cuda"))


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = settings(modes=("prefill",))
    rows = run(first, save=lambda so_far: write_bench(first, so_far, tmp_path))
    assert read_rows(tmp_path, first)[0]["measured"] == rows[0]["measured"]
    assert json.loads((tmp_path / "bench.json").read_text())["complete"] is True
    both = settings(modes=("prefill", "decode"))
    write_bench(both, read_rows(tmp_path, both), tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text())["complete"] is False
    measured: list[str] = []
    compared = runner._compared
    monkeypatch.setattr(runner, "_compared", lambda s, c, p: (measured.append(c.mode), compared(s, c, p))[1])
    assert [row["mode"] for row in run(both, read_rows(tmp_path, both))] == ["prefill", "decode"]
    assert measured == ["decode"]
    with pytest.raises(OutputError, match="with other repeats"):
        read_rows(tmp_path, settings(repeats=2))
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(OutputError, match="cannot go on from"):
        read_rows(tmp_path, first)


def test_the_command_writes_files_and_prints_json(tmp_path: Path) -> None:
    command = [*COMMAND, "--schemes", "alibi,none", "--modes", "prefill", "--output-dir", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((tmp_path / "bench.json").read_text())
    assert (record["kind"], record["format_version"]) == ("bench", 1)
    with (tmp_path / "bench.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["scheme"] for row in table] == ["alibi", "none"]
    assert float(table[0]["time_ratio"]) == record["rows"][0]["time_ratio"]
    again = CliRunner().invoke(app, command)
    assert "2 cells already" in again.stderr
    assert "Ratios to the unswapped model" in again.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schemes", "alibi", "--modes", "sleep"], "unknown value of modes: 'sleep'"),
        (["--schemes", "alibbi"], "alibi"),
        (["--schemes", "alibi", "--lengths", "many"], "no list of numbers"),
    ],
)
def test_the_command_refuses_wrong_arguments(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*COMMAND, *options, "--output-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
def test_imports_and_loading_are_measured() -> None:
    rows = run(settings(modes=("import", "load")))
    assert [row["mode"] for row in rows] == ["import", "load"]
    assert all(row["time_ratio"] > 0 and row["memory_ratio"] is None for row in rows)

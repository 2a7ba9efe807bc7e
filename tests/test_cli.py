"""The command line: what it prints, what it writes, and how it refuses."""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.experiments import settings
from hf_posswap.swapped import capabilities

COMPARE = ["compare", "--model", "demo:gpt2", "--text", "demo:book/test"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def subprocess_run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300)


def refused(*arguments: str) -> str:
    """Run a command that must be refused, and return its message."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("compare")
    options = ["--schemes", "alibi,rope:yarn:factor=4", "--lengths", "64,256,512", "--tokens", "1024"]
    return folder, invoke(*COMPARE, *options, "--output-dir", str(folder))


def test_help_names_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("schemes", "matrix", "describe", "swap", "compare"))


@pytest.mark.parametrize("command", [(), ("evaluate",), ("finetune",), ("bench",)])
def test_help_does_not_import_what_is_slow(command: tuple[str, ...]) -> None:
    code = (
        f"import sys\nsys.argv = {['hf-posswap', *command, '--help']}\nfrom hf_posswap.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "slow = {'torch', 'transformers', 'pandas', 'vl_convert'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    result = subprocess_run(["-c", code])
    assert result.returncode == 0, result.stderr


def test_schemes_lists_every_scheme() -> None:
    table = invoke("schemes")
    assert table.exit_code == 0
    assert all(name in table.stdout for name in hf_posswap.list_schemes())
    entries = json.loads(invoke("schemes", "--json").stdout)
    assert [entry["name"] for entry in entries] == hf_posswap.list_schemes()
    assert all(entry["paper_url"] and entry["formula"] and entry["options"] for entry in entries)


def test_matrix_shows_every_cell_with_its_reason() -> None:
    cells = json.loads(invoke("matrix", "--json").stdout)
    assert len(cells) == len(hf_posswap.capabilities())
    refusals = [cell for cell in cells if not cell["supported"]]
    assert any(cell["scheme"] == "none" and cell["mode"] == "encoder" for cell in refusals)
    table = invoke("matrix").stdout
    assert "gpt2 causal" in table
    assert "Why not" in table


def test_describe_reports_stock_and_swapped_models() -> None:
    assert "learned" in invoke("describe", "demo:gpt2").stdout
    report = invoke("describe", "demo:gpt2", "--pos-scheme", "alibi")
    assert report.exit_code == 0
    assert "alibi" in report.stdout
    assert json.loads(invoke("describe", "demo:gpt2", "--pos-scheme", "alibi", "--json").stdout)


def test_several_schemes_are_written_with_commas_and_in_lists_in_brackets(tmp_path: Path) -> None:
    report = invoke("describe", "demo:gpt2", "--pos-scheme", "none:layers=1,alibi")
    assert "1: NoPE" in report.stdout, report.output
    assert "entry 2 (alib): unknown positional scheme" in refused(
        "describe", "demo:gpt2", "--pos-scheme", "t5:layers=0,alib"
    )
    options = ["--schemes", "alibi,[none:layers=1,alibi]", "--lengths", "64", "--tokens", "64", "--json"]
    result = json.loads(invoke(*COMPARE, *options, "--output-dir", str(tmp_path)).stdout)
    assert {row["scheme"] for row in result["rows"]} == {"stock", "alibi", "none:layers=1,alibi"}


def test_swap_saves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = invoke("swap", "demo:gpt2", "--pos-scheme", "alibi", "--output-dir", str(folder))
    assert result.exit_code == 0, result.output
    assert str(folder / "model.safetensors") in result.stdout.replace("\n", "")
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(folder)
    assert hf_posswap.is_swapped(model)
    assert (folder / "tokenizer.json").is_file()
    assert invoke("describe", str(folder)).exit_code == 0
    assert "is swapped already" in refused(
        "compare", "--model", str(folder), "--text", "demo:books", "--schemes", "t5", "--lengths", "64"
    )


def test_swap_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    arguments = ["swap", "demo:gpt2", "--pos-scheme", "alibi", "--output-dir", str(tmp_path)]
    assert "is not empty. Give a new folder, or --overwrite" in refused(*arguments)
    assert invoke(*arguments, "--overwrite").exit_code == 0


def test_compare_prints_a_table_and_names_its_files(compared: tuple[Path, Result]) -> None:
    folder, result = compared
    assert result.exit_code == 0, result.output
    assert "stock" in result.stdout
    assert "rope:yarn:factor=4" in result.stdout
    assert "— stock: longest position 256" in result.stdout
    assert all(str(folder / name) in result.stdout for name in ("compare.csv", "compare.json", "compare.png"))
    assert "(2/3) alibi swapped" in result.stderr, "progress goes to stderr"


def test_compare_writes_tidy_files(compared: tuple[Path, Result]) -> None:
    folder, _ = compared
    with (folder / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 3
    assert {(row["scheme"], row["stage"]) for row in rows} == {
        ("stock", "stock"),
        ("alibi", "swapped"),
        ("rope:yarn:factor=4", "swapped"),
    }
    record = json.loads((folder / "compare.json").read_text())
    assert record["seed"] == 0
    assert {"command", "versions", "hardware"} <= set(record["environment"])
    assert record["rows"][0]["perplexity"] == pytest.approx(float(rows[0]["perplexity"]))
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_compare_as_json_prints_nothing_else_on_stdout(tmp_path: Path) -> None:
    result = invoke(
        *COMPARE, "--schemes", "alibi", "--lengths", "64", "--tokens", "64", "--json", "--output-dir", str(tmp_path)
    )
    assert json.loads(result.stdout) == json.loads((tmp_path / "compare.json").read_text())
    assert "compare.png" in result.stderr


def test_compare_goes_on_from_what_is_there_and_starts_anew_when_told_to(compared: tuple[Path, Result]) -> None:
    folder, first = compared
    same = [*COMPARE, "--schemes", "alibi,rope:yarn:factor=4", "--lengths", "64,256,512", "--output-dir", str(folder)]
    again = invoke(*same, "--tokens", "1024")
    assert again.exit_code == 0, again.output
    assert "going on after 3 of 3 points" in again.stderr
    assert again.stdout == first.stdout
    message = refused(*same, "--tokens", "2048")
    assert "another tokens: 1024 there, 2048 now. Use the settings of that run" in message
    assert "--overwrite" in message


def test_compare_names_a_file_that_it_cannot_go_on_from_and_overwrites_it(tmp_path: Path) -> None:
    small = ["--schemes", "alibi", "--lengths", "64", "--tokens", "64", "--output-dir", str(tmp_path)]
    (tmp_path / "compare.json").write_text("half of {")
    assert f"cannot read '{tmp_path / 'compare.json'}'" in refused(*COMPARE, *small)
    assert invoke(*COMPARE, *small, "--overwrite").exit_code == 0
    assert json.loads((tmp_path / "compare.json").read_text())["complete"]


@pytest.mark.slow
def test_compare_runs_as_a_real_process_and_twice_alike(tmp_path: Path) -> None:
    tables = []
    for name in ("one", "two"):
        options = ["--schemes", "t5", "--lengths", "64,128", "--tokens", "512", "--output-dir", str(tmp_path / name)]
        result = subprocess_run(["-m", "hf_posswap.cli", *COMPARE, *options])
        assert result.returncode == 0, result.stderr
        tables.append((tmp_path / name / "compare.csv").read_bytes())
        command = json.loads((tmp_path / name / "compare.json").read_text())["environment"]["command"]
        assert command.startswith("python -m hf_posswap.cli compare --model demo:gpt2")
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schemes", "alibbi", "--lengths", "64"], "unknown positional scheme 'alibbi'. Did you mean 'alibi'"),
        (["--schemes", "alibi", "--lengths", "64,many"], "'64,many' is no list of numbers"),
        (["--schemes", "alibi", "--lengths", ""], "no length given"),
        (["--schemes", "alibi", "--lengths", "64", "--dtype", "int4"], "unknown value of dtype: 'int4'"),
        (["--schemes", "alibi", "--lengths", "64", "--text", "/no/such.txt"], "cannot read text '/no/such.txt'"),
        (["--schemes", "alibi", "--lengths", "64", "--output-dir", "/dev/null/x"], "cannot write to '/dev/null/x'"),
        (["--schemes", "alibi"], "--lengths"),
        (["--schemes", "alibi", "--lengths", "64", "--calibrate"], "there is no text to calibrate on"),
        (["--schemes", "alibi", "--lengths", "64", "--heal-tokens", "0"], "tokens is 0; it must be at least 1"),
        (["--schemes", "alibi", "--lengths", "64", "--heal-tokens", "x"], "--heal-tokens"),
        (["--schemes", "alibi", "--lengths", "64", "--control"], "give --heal-tokens too"),
        (["--schemes", "", "--lengths", "64"], "no scheme given to compare stock with"),
        (["--schemes", "alibi", "--lengths", "64", "--learning-rate", "0.1"], "has no effect without --heal-tokens"),
        (["--schemes", "alibi", "--lengths", "64", "--precision", "no"], "has no effect without --heal-tokens"),
        (["--schemes", "alibi", "--lengths", "64", "--calibration-tokens", "9"], "has no effect without --calibrate"),
        (["--schemes", "alibi", "--lengths", "64", "--device", "meta"], "device 'meta' holds no numbers"),
        (
            ["--schemes", "alibi", "--lengths", "64", "--train-file", "demo:books/train"],
            "nothing would read the",
        ),
        (
            ["--schemes", "alibi", "--lengths", "64", "--calibrate", "--train-file", "demo:book/test"],
            "'frankenstein.txt' is measured on, and 'frankenstein.txt', which is learned from",
        ),
    ],
)
def test_compare_refuses_wrong_arguments(options: list[str], message: str) -> None:
    assert message in refused(*COMPARE, *options).replace("│ ", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "no/such/model"], "cannot load model 'no/such/model'"),
        (["describe", "demo:bert", "--pos-scheme", "none"], "none"),
        (["describe", "demo:gpt2", "--pos-scheme", "rope:spiral"], "spiral"),
        (["swap", "demo:gpt2", "--pos-scheme", "t6", "--output-dir", "x"], "unknown positional scheme 't6'"),
        (
            ["swap", "demo:gpt2", "--pos-scheme", "t5", "--output-dir", "x", "--dtype", "int4"],
            "unknown value of dtype: 'int4'",
        ),
        (["card", "demo", "--repo", "a bad name"], "'a bad name' is no name on the Hub. Write owner/name."),
        (["card", "demo", "--repo", "a bad name", "--adapter"], "'a bad name' is no name on the Hub."),
        (
            ["bench", "gpt2", "--schemes", "alibi", "--layers", "99", "--output-dir", "x"],
            "99 layers are to be kept, and 'gpt2' has 12.",
        ),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_a_model_that_is_swapped_already_is_not_swapped_again(tmp_path: Path) -> None:
    folder = str(tmp_path / "alibi")
    assert invoke("swap", "demo:gpt2", "--pos-scheme", "alibi", "--output-dir", folder).exit_code == 0
    for command in ("swap", "calibrate"):
        text = ["--text", "demo:book/train"] if command == "calibrate" else []
        told = refused(command, folder, "--pos-scheme", "t5", "--output-dir", str(tmp_path / "t5"), *text)
        assert "swapped already ('alibi'). Give the model it was made from." in told
        assert not (tmp_path / "t5").exists()


def test_the_recipe_in_the_help_is_the_one_that_heals() -> None:
    told = " ".join(invoke("compare", "--help").stdout.replace("│", " ").split())
    recipe = settings.recipe(1)
    for start, value in (
        ("Windows in a batch of one process.", recipe.batch_size),
        ("Peak learning rate of the scheme's parameters.", recipe.scheme_learning_rate),
        ("Number of tokens to calibrate on.", settings.CALIBRATION_TOKENS),
    ):
        assert f"{start} Default: {value}." in told
    assert (recipe.supervise, recipe.learning_rate) == ((), None)
    assert "Default: 0.0003 for a causal model that starts near the stock model" in told


@pytest.mark.parametrize(
    ("where", "arguments", "told"),
    [
        ("hf_posswap.swapped.description.describe", ["describe", "demo:gpt2"], "Interrupted."),
        (
            "hf_posswap.benchmarking.runner.run",
            ["bench", "gpt2", "--schemes", "alibi", "--output-dir", "x"],
            "Interrupted. The same command goes on from x/bench.json.",
        ),
    ],
)
def test_ctrl_c_has_an_exit_code_of_its_own(
    where: str, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(where, interrupt)
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr.strip().splitlines()[-1]) == (130, told)


def test_unexpected_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(capabilities, "capabilities", fail)
    result = invoke("matrix")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_the_version_is_told() -> None:
    assert invoke("--version").stdout == f"hf_posswap {hf_posswap.__version__}\n"


def test_an_architecture_that_is_not_supported_is_refused_before_its_weights_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")
    assert "model type 't5' is not supported" in refused("describe", str(tmp_path))


def test_a_benchmark_of_no_model_measures_nothing(tmp_path: Path) -> None:
    message = refused("bench", "gpt3", "--schemes", "alibi", "--lengths", "16", "--output-dir", str(tmp_path / "out"))
    assert "cannot load model 'gpt3'" in message
    assert "smollm2, gpt2" in message
    assert not list(tmp_path.glob("out/*"))

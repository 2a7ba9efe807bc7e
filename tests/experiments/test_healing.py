"""`hf-posswap finetune` and the experiment behind it, on real weights, and their refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.errors import AdapterError
from hf_posswap.evaluation.perplexity import perplexity_rows
from hf_posswap.experiments.healing import run_experiment
from hf_posswap.experiments.settings import Experiment
from hf_posswap.sources import load_tokenizer
from hf_posswap.training import HealingError, HealingOptions, add_lora, from_files, load_adapter
from hf_posswap.training.start import NEAR

SHORT = ["--length", "32", "--batch-size", "2", "--steps", "3", "--checkpoint-every", "0"]
FEW = ["--calibration-tokens", "1024"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["finetune", *arguments])


def test_one_command_swaps_calibrates_heals_and_measures_beside_a_control(tmp_path: Path) -> None:
    out = tmp_path / "out"
    what = ["--model", "demo:gpt2", "--pos-scheme", "t5:per_layer=true", "--train-file", "demo:book/train"]
    measured = ["--eval-file", "demo:book/test", "--eval-lengths", "32,300", "--eval-tokens", "600"]
    steps = tmp_path / "steps" / "all.json"
    result = run(
        *(*what, *SHORT, *measured, "--control", "--output-dir", str(out), "--history", str(steps)),
        *("--supervise", "attention,logits,hidden", *FEW, "--json"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    kept = {"healed": report["healing"]["history"], "control": report["control"]["history"]}
    assert json.loads(steps.read_text()) == kept, "three steps are few enough for all of them"
    assert report == json.loads((out / "healing.json").read_text())
    losses = {name: {row["length"]: row["loss"] for row in rows} for name, rows in report["evaluation"].items()}
    assert set(losses) == {"stock", "swapped", "calibrated", "healed", "control"}
    assert losses["stock"][32] < losses["calibrated"][32] < losses["swapped"][32]
    assert losses["stock"][300] is None
    assert losses["healed"][300] is not None
    assert len(report["healing"]["history"]) == len(report["control"]["history"]) == 3
    healing = report["healing"]
    assert 0.3 < healing["start"]["missing"] < NEAR
    assert healing["supervision"] == ["logits=1", "hidden=10", "attention=0.25"]
    assert {name: cost["tokens"] for name, cost in healing["costs"].items()} == {"attention": 64, "outputs": 128}
    assert healing["learning_rate"] == report["control"]["learning_rate"] == report["options"]["learning_rate"] == 3e-4
    assert report["control"]["supervision"] == ["labels=1"]
    assert report["pos_scheme"]["name"] == "t5"
    assert report["texts"][0]["name"] == "jos-boys.txt"
    assert report["environment"]["versions"]["torch"] == torch.__version__
    healed = transformers.AutoModelForCausalLM.from_pretrained(out)
    control = transformers.AutoModelForCausalLM.from_pretrained(out / "control")
    assert hf_posswap.is_swapped(healed)
    assert not hf_posswap.is_swapped(control)
    assert transformers.AutoTokenizer.from_pretrained(out).vocab_size == 4096
    further = ["--model", str(out), "--train-file", "demo:book/train", *SHORT, "--supervise", "labels"]
    again = run(*further, "--output-dir", str(tmp_path / "more"))
    assert again.exit_code == 0, again.output
    printed = " ".join(again.stdout.split())
    assert "µs a token" in printed
    assert "Learnt from labels=1." in printed


def test_masked_tokens_are_measured_by_length(tmp_path: Path, books: dict[str, str]) -> None:
    from hf_posswap.sources import load_tokenizer, resolve_model

    model = tmp_path / "masked"
    transformers.BertForMaskedLM.from_pretrained(resolve_model("demo:bert").path).save_pretrained(model)
    load_tokenizer("demo:bert").save_pretrained(model)
    what = ["--model", str(model), "--pos-scheme", "alibi", "--train-file", books["train"], *SHORT]
    measured = ["--eval-file", "demo:book/test", "--eval-lengths", "32,600", "--eval-tokens", "600"]
    result = run(*what, *measured, "--output-dir", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "in nats a masked token, by length (the same masked tokens)" in " ".join(result.output.split())
    evaluation = json.loads((tmp_path / "out" / "healing.json").read_text())["evaluation"]
    assert {(row["protocol"], row["tokens"] > 0) for row in evaluation["healed"]} == {("masked", True)}
    assert [row["loss"] is None for row in evaluation["stock"]] == [False, True]
    assert len({rows[0]["tokens"] for rows in evaluation.values()}) == 1, "the same tokens for every model"


def test_an_encoder_is_calibrated_healed_and_measured_by_its_embeddings(tmp_path: Path, books: dict[str, str]) -> None:
    what = ["--model", "demo:bert", "--pos-scheme", "rope", "--train-file", books["train"], "--distill"]
    measured = ["--eval-file", "demo:book/test", "--eval-lengths", "32,600", "--eval-tokens", "900"]
    result = run(*what, *FEW, *SHORT, *measured, "--output-dir", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    rows = {
        name: {row["length"]: row for row in found} for name, found in json.loads(result.stdout)["evaluation"].items()
    }
    assert set(rows) == {"stock", "swapped", "calibrated", "healed"}
    assert rows["healed"][32]["texts"] == 30
    assert rows["healed"][600]["cosine"] is None
    assert "the stock model reads 512 tokens" in rows["healed"][600]["note"]
    assert rows["stock"][32]["cosine"] > rows["healed"][32]["cosine"] > rows["swapped"][32]["cosine"]
    assert rows["calibrated"][32]["cosine"] > rows["swapped"][32]["cosine"]


def test_adapters_are_saved_in_place_of_the_weights(tmp_path: Path, books: dict[str, str]) -> None:
    what = [
        "--model",
        "demo:gpt2",
        "--pos-scheme",
        "relative_bias",
        "--train-file",
        books["train"],
        "--lora-rank",
        "4",
    ]
    result = run(*what, *FEW, *SHORT, "--output-dir", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "healing.json").read_text())["healing"]["parameters"] < 3e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pos-scheme", "alibi", *SHORT], "give the text to heal on"),
        (
            ["--pos-scheme=t5", "--train-file", "book.txt", "--calibration-tokens=9", "--no-calibrate", *SHORT],
            "but calibration is left out (--no-calibrate)",
        ),
        (
            ["--pos-scheme", "t5", "--train-file", "book.txt", "--calibration-tokens", "1", *SHORT],
            "calibration_tokens is 1; it must be at least 2",
        ),
        (
            ["--pos-scheme", "alibi", "--train-file", "book.txt", "--calibration-tokens", "99", *SHORT],
            "but scheme 'alibi' has no parameters that calibration can fit",
        ),
        (["--pos-scheme", "alibi", "--train-file", "book.txt"], "give a budget of tokens or of steps"),
        (["--train-file", "book.txt", *SHORT], "name the scheme to swap in"),
        (["--pos-scheme", "alibj", "--train-file", "book.txt", *SHORT], "Did you mean 'alibi'"),
        (["--pos-scheme", "alibi", "--train-file", "missing.txt", *SHORT], "cannot read text 'missing.txt'"),
        (["--pos-scheme", "alibi", "--train-file", "empty.txt", *SHORT], "is empty"),
        (["--pos-scheme", "alibi", "--train-file", "short.txt", *SHORT], "less than one window of 32"),
        (["--pos-scheme", "alibi", "--train-file", "book.txt", *SHORT, "--objective", "mlm"], "does not fit"),
        (
            ["--pos-scheme", "alibi", "--train-file", "book.txt", *SHORT, "--distill-weight", "0.5"],
            "--distill-weight 0.5 sets the amount for --distill",
        ),
        (
            ["--pos-scheme", "alibi", "--train-file", "book.txt", *SHORT, "--ramp-share", "0.3"],
            "give --ramp too",
        ),
        (["--pos-scheme", "alibi", "--train-file", "book.txt", *SHORT, "--eval-lengths", "64"], "--eval-file"),
        (["--pos-scheme", "alibi", "--train-file", "book.txt", *SHORT, "--eval-tokens", "64"], "--eval-file"),
        (
            ["--pos-scheme", "alibi", "--train-file", "book.txt", *SHORT, "--length", "512", "--control"],
            "the control, the stock model, reads at most 256 tokens",
        ),
        (
            ["--pos-scheme", "rope", "--train-file", "book.txt", *SHORT, "--lora-rank", "2"],
            "rewrites the weights of queries and keys",
        ),
        (
            ["--pos-scheme", "alibi", "--train-file", "book.txt", *SHORT, "--train", "scheme"],
            "train='scheme' has nothing to train",
        ),
        (
            ["--pos-scheme", "t5", "--train-file", "book.txt", *SHORT, "--stock", "demo:gpt2"],
            "is stock, so it is its own stock model",
        ),
        (["--pos-scheme", "t5", "--train-file", "book.txt", *SHORT, "--lora-rank", "0"], "lora_rank is 0"),
        (
            ["--pos-scheme", "t5", "--train-file", "book.txt", *SHORT, "--dataset-split", "test"],
            "--dataset-split test is of a dataset",
        ),
        (
            ["--pos-scheme", "t5", "--train-file", "book.txt", *SHORT, "--text-column", "body"],
            "--text-column body is of a dataset",
        ),
        (
            ["--pos-scheme", "t5", "--train-file", "book.txt", *SHORT, "--lora-rank", "2", "--train", "scheme"],
            "would leave the adapters as they are",
        ),
        (
            [
                "--pos-scheme",
                "learned:length=512",
                "--train-file",
                "book.txt",
                *SHORT,
                "--eval-file",
                "short.txt",
            ],
            "tokens",
        ),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, books, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(books["train"], "book.txt")
    Path("short.txt").write_text("A short text.")
    Path("empty.txt").write_text("")
    result = run("--model", "demo:gpt2", "--output-dir", "out", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "calibrating …" not in result.output, "refused before anything that takes long"
    assert not list(Path().glob("out/*.safetensors"))


def test_a_healed_model_is_healed_further_beside_the_stock_model_it_came_from(
    tmp_path: Path, gpt2_books_path: Path, books: dict[str, str]
) -> None:
    what = ["--train-file", books["train"], *SHORT, "--learning-rate", "1e-3"]
    measured = ["--eval-file", "demo:book/test", "--eval-lengths", "32", "--eval-tokens", "600"]
    swapped_in = ["--model", "demo:gpt2", "--pos-scheme", "t5", *FEW]
    first = run(*swapped_in, *what, *measured, "--output-dir", str(tmp_path / "one"))
    assert first.exit_code == 0, first.output
    further = ["--model", str(tmp_path / "one"), *what, "--output-dir", str(tmp_path / "two")]
    for needs in (["--distill"], ["--supervise", "labels", "--control"], measured):
        refused = run(*further, *needs)
        assert refused.exit_code == 2
        assert "healed before" in refused.output
        assert "--stock NAME" in refused.output
    swapped = run(*further, "--distill", "--stock", str(tmp_path / "one"))
    assert "named as the stock model, is swapped" in swapped.output
    shallow = transformers.GPT2Config.from_pretrained(gpt2_books_path, n_layer=1)
    transformers.GPT2LMHeadModel(shallow).save_pretrained(tmp_path / "shallow")
    other = run(*further, "--distill", "--stock", str(tmp_path / "shallow"))
    assert "has num_hidden_layers 1, and the model to heal 6" in " ".join(other.output.split())
    done = run(*further, *measured, "--distill", "--control", "--stock", "demo:gpt2", "--json")
    assert done.exit_code == 0, done.output
    one, two = json.loads((tmp_path / "one" / "healing.json").read_text()), json.loads(done.stdout)
    assert two["stock"] == "demo:gpt2"
    losses = [{name: rows[0]["loss"] for name, rows in report["evaluation"].items()} for report in (one, two)]
    assert losses[1]["stock"] == losses[0]["stock"]
    assert losses[1]["swapped"] == pytest.approx(losses[0]["healed"], abs=1e-6)
    assert two["control"]["history"][0]["loss"] == pytest.approx(losses[0]["stock"], abs=1)  # and not a broken model's


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, books: dict[str, str], gpt2_books_path: Path) -> None:
    folder = tmp_path / "mixed"
    transformers.AutoModelForCausalLM.from_pretrained(gpt2_books_path).save_pretrained(folder)
    from hf_posswap.sources import load_tokenizer

    load_tokenizer("demo:bert").save_pretrained(folder)
    result = run(
        "--model", str(folder), "--pos-scheme", "alibi", "--train-file", books["train"], *SHORT,
        "--output-dir", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.exit_code == 2
    assert "the tokenizer does not match the model" in result.output


def test_a_control_of_the_embedding_objective_would_be_its_own_teacher(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text " * 500, encoding="utf-8")
    experiment = Experiment(
        model="demo:bert",
        pos_scheme="alibi",
        train_texts=(str(tmp_path / "text.txt"),),
        healing=HealingOptions(steps=1, distill=1.0, objective="embedding"),
        control=True,
    )
    with pytest.raises(HealingError, match="control says nothing"):
        run_experiment(experiment)


def test_refinement_brings_the_scheme_closer_to_the_stock_model(tmp_path: Path, books: dict[str, str]) -> None:
    result = CliRunner().invoke(
        app,
        [
            "calibrate", "demo:gpt2", "--pos-scheme", "t5:per_layer=true", "--text", books["train"],
            "--tokens", "1024", "--refine-tokens", "16384", "--output-dir", str(tmp_path / "out"), "--json",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report, _ = json.JSONDecoder().raw_decode(result.stdout)
    history = report["refinement"]["history"]
    assert sum(row["loss"] for row in history[-4:]) < 0.9 * sum(row["loss"] for row in history[:4])
    stock = transformers.AutoModelForCausalLM.from_pretrained("hf_posswap/assets/gpt2-books", dtype=torch.float32)
    refined = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(stock.transformer.wte.weight, refined.transformer.wte.weight)
    assert torch.equal(stock.transformer.h[3].mlp.c_fc.weight, refined.transformer.h[3].mlp.c_fc.weight)


def test_an_adapter_on_a_calibrated_rope_holds_what_was_measured(
    tmp_path: Path, books: dict[str, str], gpt2_books_path: Path
) -> None:
    """Calibrating RoPE rewrites weights, which an adapter does not carry: its base is the calibrated model, saved."""
    text = ["--text", books["train"], "--tokens", "1024", "--length", "128"]
    calibrated = CliRunner().invoke(
        app, ["calibrate", "demo:gpt2", "--pos-scheme", "rope", *text, "--output-dir", str(tmp_path / "calibrated")]
    )
    assert calibrated.exit_code == 0, calibrated.output
    measured = ["--eval-file", "demo:book/test", "--eval-lengths", "32", "--eval-tokens", "600"]
    still = ["--learning-rate", "1e-9", "--scheme-learning-rate", "1e-9", "--lora-rank", "2"]
    what = ["--model", str(tmp_path / "calibrated"), "--train-file", books["train"], *SHORT, *measured, *still]
    result = run(*what, "--output-dir", str(tmp_path / "adapter"), "--json")
    assert result.exit_code == 0, result.output
    evaluation = json.loads(result.stdout)["evaluation"]
    text_ids = load_tokenizer("demo:gpt2")(str(from_files(["demo:book/test"])[0][0]), return_tensors="pt").input_ids[0]
    rows = perplexity_rows(
        load_adapter(tmp_path / "adapter").get_base_model(), text_ids, [32], ("same-targets",), budget=600
    )
    assert rows[0].loss == pytest.approx(evaluation["healed"][0]["loss"], abs=1e-4)
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(
        gpt2_books_path, pos_scheme="rope", calibration=[text_ids[None, :128]]
    )
    with pytest.raises(AdapterError, match="calibration rewrote the weights"):
        add_lora(model, 2)


def test_a_run_goes_on_only_with_adapters_of_its_own_rank_and_its_own_calibration(
    tmp_path: Path, books: dict[str, str]
) -> None:
    what = ["--model", "demo:gpt2", "--pos-scheme", "alibi", "--train-file", books["train"], "--length", "32"]
    begun = [*what, "--batch-size", "2", "--steps", "2", "--checkpoint-every", "1", "--output-dir", str(tmp_path)]
    assert run(*begun, "--lora-rank", "2").exit_code == 0
    for other in (["--lora-rank", "4"], []):
        refused = run(*begun, *other, "--resume")
        assert refused.exit_code == 2
        assert "lora_rank was 2 there" in refused.output or "holds an adapter" in refused.output
    refused = run(*begun, "--lora-rank", "2", "--no-calibrate", "--resume")
    assert refused.exit_code == 2
    assert "calibration_tokens was 8192 there and is 0 now" in refused.output


def test_a_whole_model_is_not_saved_beside_an_adapter(tmp_path: Path, books: dict[str, str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    what = ["--model", "demo:gpt2", "--pos-scheme", "alibi", "--train-file", books["train"], *SHORT]
    swap = ["demo:gpt2", "--pos-scheme", "t5", "--output-dir", str(tmp_path), "--overwrite"]
    for command in (
        ["finetune", *what, *swap[-3:]],
        ["swap", *swap],
        ["calibrate", *swap, "--text", books["train"]],
    ):
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2
        assert "holds an adapter (adapter_config.json)" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def test_a_run_that_has_nothing_to_go_on_from_says_so(tmp_path: Path, books: dict[str, str]) -> None:
    what = ["--model", "demo:gpt2", "--pos-scheme", "alibi", "--train-file", books["train"], *SHORT]
    result = run(*what, "--output-dir", str(tmp_path / "new"), "--resume")
    assert result.exit_code == 0, result.output
    assert "There is no checkpoint in" in result.output


def test_after_an_interruption_the_way_on_is_named_at_once(tmp_path: Path, books: dict[str, str]) -> None:
    (tmp_path / "checkpoint-0000002").mkdir()
    what = ["--model", "demo:gpt2", "--pos-scheme", "alibi", "--train-file", books["train"], *SHORT]
    refused = run(*what, "--output-dir", str(tmp_path))
    assert refused.exit_code == 2
    assert "holds checkpoints of an earlier run, up to checkpoint-0000002" in refused.output

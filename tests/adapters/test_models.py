"""Adapters where a MODEL is asked for: with a base that is found again, loaded, merged, measured and published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.errors import AdapterError, SourceError
from hf_posswap.loading.entry import is_healed
from hf_posswap.sources import ModelSource, is_adapter, load_config, load_model, load_tokenizer, sources_of
from hf_posswap.training.adapters import add_lora, load_adapter

IDS = torch.arange(5, 37)[None]


def moved(adapted: Any) -> Any:
    """Move everything that an adapter has learnt, in place, and by no little."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return adapted.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(IDS)
    return torch.as_tensor(out.logits if "logits" in out else out.last_hidden_state)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str | None], tuple[Path, torch.Tensor]]:
    """Make an adapter for a base and a scheme, once each, and return its folder and what it computes."""
    made: dict[tuple[str, str | None], tuple[Path, torch.Tensor]] = {}

    def trained(base: str, scheme: str | None) -> tuple[Path, torch.Tensor]:
        if (base, scheme) not in made:
            model = load_model(base)
            if scheme is not None:
                hf_posswap.swap(model, scheme)
            adapted = moved(add_lora(model, rank=2))
            folder = tmp_path_factory.mktemp("adapter") / "lora"
            adapted.save_pretrained(str(folder))
            made[base, scheme] = folder, logits(adapted)
        return made[base, scheme]

    return trained


@pytest.fixture
def gguf(smollm2_source: ModelSource) -> str:
    return str(Path(smollm2_source.path, smollm2_source.from_pretrained_kwargs["gguf_file"]))


BASES = [("demo:gpt2", "t5"), ("demo:gpt2", "alibi:trainable=true"), ("demo:gpt2", None), ("demo:bert", "rope")]
LARGE = [("demo:llama", "t5"), ("gguf", "alibi")]


@pytest.mark.parametrize(("base", "scheme"), [*BASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE)])
def test_an_adapter_is_loaded_by_its_folder_from_anywhere(
    base: str,
    scheme: str | None,
    trained: Any,
    gguf: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = gguf if base == "gguf" else base
    folder, expected = trained(base, scheme)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(load_adapter(folder, dtype=torch.float32)), expected)
    model = load_model(str(folder))
    # Merging rounds each weight once more than adding two products does.
    assert torch.allclose(logits(model), expected, atol=2e-3 * float(expected.abs().max()))
    assert not torch.allclose(logits(model), logits(load_model(base)), atol=0.05)
    config = load_config(str(folder))
    assert type(config) is type(model.config)
    assert getattr(config, "pos_scheme", None) == getattr(model.config, "pos_scheme", None)
    assert is_healed(model.config) == (scheme is not None)
    assert len(sources_of(str(folder))) == 2
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert load_tokenizer(str(folder)).vocab_size == load_tokenizer(base).vocab_size


def test_a_file_says_nothing_of_this_computer(trained: Any) -> None:
    folder, _ = trained("demo:gpt2", "t5")
    for file in ("adapter_config.json", "README.md"):
        assert str(Path(hf_posswap.__file__).parent) not in (folder / file).read_text()


def test_an_adapter_on_an_adapter_needs_both(trained: Any, tmp_path: Path) -> None:
    first, before = trained("demo:gpt2", "t5")
    second = moved(add_lora(load_model(str(first)), rank=2))
    second.save_pretrained(str(tmp_path / "second"))
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        first
    )
    again = logits(load_model(str(tmp_path / "second")))
    assert torch.allclose(again, logits(second), atol=2e-3 * float(again.abs().max()))
    assert not torch.allclose(again, before, atol=0.05)


COMMANDS = [
    ["describe", "ADAPTER"],
    ["inspect", "ADAPTER"],
    ["bias", "ADAPTER", "--longest", "4", "--output-dir", "OUT"],
    ["evaluate", "ADAPTER", "--text", "demo:book/test", "--lengths", "64", "--tokens", "64", "--measure", "loss",
     "--output-dir", "OUT"],
    ["finetune", "--model", "ADAPTER", "--train-file", "demo:excerpt", "--steps", "1", "--batch-size", "1", "--length",
     "32", "--output-dir", "OUT"],
    ["card", "ADAPTER"],
]  # fmt: skip
OF_STOCK = [
    ["swap", "ADAPTER", "--pos-scheme", "alibi", "--output-dir", "OUT"],
    ["calibrate", "ADAPTER", "--pos-scheme", "t5", "--text", "demo:book/test", "--tokens", "256", "--length", "64",
     "--output-dir", "OUT"],
    ["compare", "--model", "ADAPTER", "--schemes", "alibi", "--text", "demo:book/test", "--lengths", "64", "--tokens",
     "64", "--output-dir", "OUT"],
    ["bench", "ADAPTER", "--schemes", "alibi", "--lengths", "8", "--modes", "prefill", "--repeats", "1", "--output-dir",
     "OUT"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "scheme"),
    [*((c, "t5") for c in COMMANDS), *((c, None) for c in OF_STOCK)],
    ids=lambda c: c[0] if isinstance(c, list) else str(c),
)
def test_every_command_takes_an_adapter(arguments: list[str], scheme: str | None, trained: Any, tmp_path: Path) -> None:
    folder, _ = trained("demo:gpt2", scheme)
    places = {"ADAPTER": str(folder), "OUT": str(tmp_path / "out")}
    done = CliRunner().invoke(app, [places.get(word, word) for word in arguments])
    assert done.exit_code == 0, done.output
    if arguments[0] == "evaluate":
        rows = json.loads((tmp_path / "out" / "lengths.json").read_text())["rows"]
        assert {(row["scheme"], row["stage"]) for row in rows} == {("t5", "healed")}
    if arguments[0] == "describe":
        assert "healed: they have learned with the scheme" in done.stdout


def test_a_swapped_adapter_is_exported_where_stock_has_its_scheme(trained: Any, tmp_path: Path) -> None:
    folder, _ = trained("demo:gpt2", "learned:interpolate:length=512")
    done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    merged = load_model(str(folder), dtype="auto").float()  # it was merged in the dtype of the base
    assert torch.allclose(logits(load_model(str(tmp_path / "out"))), logits(merged), atol=1e-4)


def spoiled(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def less(path: Path) -> None:
    """Take half of the products out of a file."""
    weights = load_file(path)
    lora = [name for name in sorted(weights) if "lora_" in name]
    save_file({name: weight for name, weight in weights.items() if name not in lora[::2]}, path)


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: cut(folder / "adapter_model.safetensors"), "cannot be put on .*SafetensorError"),
    (lambda folder: less(folder / "adapter_model.safetensors"), "cannot be put on .*missing adapter keys"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be put on"),
    (lambda folder: cut(folder / "adapter_config.json"), "holds no adapter"),
    (lambda folder: spoiled(folder, base_model_name_or_path="no/where"), "under adapter .* is 'no/where', and cannot"),
    (lambda folder: spoiled(folder, base_model_name_or_path=None), "does not name the model under it"),
    (lambda folder: spoiled(folder, base_model_name_or_path="demo:bert"), "."),
    (lambda folder: spoiled(folder, r=4), "cannot be put on .*RuntimeError"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_adapter_is_an_error_in_words(
    spoil: Callable[[Path], object], message: str, trained: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained("demo:gpt2", "t5")[0], tmp_path / "lora"))
    spoil(folder)
    with pytest.raises((AdapterError, SourceError), match=message):
        load_model(str(folder))
    done = CliRunner().invoke(app, ["describe", str(folder)])
    assert done.exit_code == 2, done.output


def test_an_adapter_for_another_head_is_refused_and_its_base_is_given(trained: Any) -> None:
    folder, _ = trained("demo:gpt2", "t5")
    headless = load_model(str(folder), AutoModel)
    assert torch.equal(logits(headless), logits(load_model(str(folder)).base_model))
    with pytest.raises(AdapterError, match="was trained on an AutoModelForCausalLM, and an AutoModelForMaskedLM is"):
        load_model(str(folder), hf_posswap.AutoModelForMaskedLM)


def test_what_is_no_adapter_is_none(trained: Any, tmp_path: Path) -> None:
    folder, _ = trained("demo:gpt2", "t5")
    assert is_adapter(str(folder))
    both = Path(shutil.copytree(folder, tmp_path / "both"))
    (both / "config.json").write_text("{}")
    for name in ("demo:gpt2", str(both), str(tmp_path), "no/such-model", "/no/such/folder"):
        assert not is_adapter(name)

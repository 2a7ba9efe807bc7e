"""Adapters: pushed with the scheme they carry, loaded by others, refused where they carry none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import hf_posswap
from hf_posswap.commands import app
from hf_posswap.hub import HubError, Target, adapter_card_of, card_of, push_adapter
from hf_posswap.sources import load_model
from hf_posswap.training.adapters import add_lora, load_adapter
from tests.hub.cards import card_errors
from tests.hub.conftest import Run
from tests.hub.server import OWNER, TOKEN, HubServer

REPO = f"{OWNER}/gpt2-t5-lora"


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healed") / "gpt2-t5-lora"
    adapted = add_lora(hf_posswap.swap(load_model("demo:gpt2"), "t5:per_layer=true"), rank=2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter) if "table" in name or "lora_B" in name else 0
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture
def adapter(healed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healed, tmp_path / healed.name))


LOAD = """
import json, sys, torch
from hf_posswap.training.adapters import load_adapter
with torch.no_grad():
    logits = load_adapter(sys.argv[1], dtype=torch.float32)(torch.arange(16)[None]).logits
print(json.dumps(logits[0, -1].tolist()))
"""


@pytest.mark.slow
def test_pushed_and_loaded_from_the_hub(client: HubServer, run: Run, adapter: Path, gpt2_books_path: Path) -> None:
    names = ("config.json", "model.safetensors", "README.md")
    client.add(f"{OWNER}/gpt2-books", {name: (gpt2_books_path / name).read_bytes() for name in names})
    done = push_adapter(adapter, Target(REPO, private=True), base_model=f"{OWNER}/gpt2-books")
    files = client.files(REPO)
    assert set(files) == set(done.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert str(gpt2_books_path) not in str(files["adapter_config.json"])
    card = files["README.md"].decode()
    assert card_errors(card) == []
    data = ModelCard(card).data.to_dict()
    assert data == {
        "base_model": f"{OWNER}/gpt2-books",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["hf_posswap", "pos-scheme:t5", "lora"],
    }
    assert f'load_adapter("{REPO}")' in card
    assert "`t5:per_layer=true`" in card
    loaded = run("-c", LOAD, REPO)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    with torch.no_grad():
        local = load_adapter(adapter, base=load_model("demo:gpt2"))(torch.arange(16)[None]).logits[0, -1].tolist()
    assert json.loads(loaded.stdout.splitlines()[-1]) == local
    assert TOKEN not in loaded.stdout + loaded.stderr


def test_a_base_from_a_folder_is_called_by_its_name_only(client: HubServer, adapter: Path) -> None:
    push_adapter(adapter, Target(REPO))
    config = json.loads(client.files(REPO)["adapter_config.json"])
    assert config["base_model_name_or_path"] == "demo:gpt2"
    card = client.files(REPO)["README.md"].decode()
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert f'load_adapter("{REPO}")' in card
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/home/me/my-gpt2"}))
    push_adapter(adapter, Target(REPO))
    assert json.loads(client.files(REPO)["adapter_config.json"])["base_model_name_or_path"] == "my-gpt2"
    assert f'load_adapter("{REPO}", base=model)' in client.files(REPO)["README.md"].decode()


def change(**changes: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


REFUSALS: list[tuple[Callable[[Path], object], str]] = [
    (change(peft_type="LORA"), "trained on a model that is not swapped"),
    (change(pos_scheme=None), "is not valid: pos_scheme in the config is None"),
    (change(pos_scheme={"format_version": 1, "name": "t6"}), "unknown positional scheme 't6'"),
    (change(auto_mapping={"base_model_class": "system", "parent_library": "os"}), "code that is not hf_posswap's"),
    (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x80"), "no whole safetensors file"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    (lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80"), "holds pickled files"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_what_is_not_published(adapter: Path, spoil: Callable[[Path], object], message: str) -> None:
    adapter_card_of(adapter)
    spoil(adapter)
    with pytest.raises(HubError, match=message):
        adapter_card_of(adapter)


def test_models_and_adapters_are_not_mixed_up(swapped: Path, adapter: Path) -> None:
    refused = CliRunner().invoke(app, ["card", str(swapped), "--adapter"])
    assert refused.exit_code == 2
    assert "holds a whole model, not an adapter. Leave --adapter out" in " ".join(refused.stderr.split())
    with pytest.raises(HubError, match="holds an adapter, not a whole model. Take push_adapter and adapter_card_of"):
        card_of(adapter)
    asked, found = (CliRunner().invoke(app, ["card", str(adapter), *flag]) for flag in (["--adapter"], []))
    assert asked.exit_code == found.exit_code == 0
    assert asked.stdout == found.stdout


@pytest.mark.slow
def test_an_adapter_is_pushed_as_one_and_described_from_the_hub(client: HubServer, run: Run, adapter: Path) -> None:
    done = CliRunner().invoke(app, ["push", str(adapter), REPO])
    assert done.exit_code == 0, done.output
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} == set(client.files(REPO))
    described = run("hf-posswap", "describe", REPO)
    assert described.returncode == 0, described.stderr
    assert "healed: they have learned with the scheme" in described.stdout

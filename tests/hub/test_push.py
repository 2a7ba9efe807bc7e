"""From one computer to another: push, then load in a fresh process, with hf_posswap and without it."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

import hf_posswap
from hf_posswap.architectures import architecture_named
from hf_posswap.hub import Target, push_folder
from hf_posswap.loading.configuration import remote_code_of
from hf_posswap.sources import load_model, load_tokenizer
from tests.hub.cards import card_errors
from tests.hub.conftest import Run, contains
from tests.hub.server import OWNER, PART_SIZE, READER_TOKEN, TOKEN, HubServer

REPO = f"{OWNER}/gpt2-alibi"
TEXT = "It was a dark and stormy night; the rain fell in torrents."
LOGITS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32)
with torch.no_grad():
    logits = model(**tokenizer(sys.argv[2], return_tensors="pt")).logits[0, -1].double()
print(json.dumps([type(model).__name__, tokenizer.model_max_length, logits.tolist()]))
"""
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_posswap":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForCausalLM
for trust in ({}, {"trust_remote_code": True}):
    try:
        AutoModelForCausalLM.from_pretrained(sys.argv[1], **trust)
    except (ValueError, ImportError) as error:
        print("\\nrefused:", " ".join(str(error).split()))
"""


@pytest.mark.slow
def test_pushed_and_loaded_on_another_computer(hub: HubServer, run: Run, swapped: Path, tmp_path: Path) -> None:
    done = run("hf-posswap", "push", str(swapped), REPO, "--private")
    assert done.returncode == 0, done.stderr
    assert f"Uploaded to {REPO}" in done.stdout
    files = hub.files(REPO)
    assert set(files) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_posswap.py",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert hub.repositories[REPO].private
    assert files["model.safetensors"] == (swapped / "model.safetensors").read_bytes()
    assert len(files["model.safetensors"]) > PART_SIZE
    assert any(request.startswith("PUT /lfs/part/") for request in hub.requests)
    card = files["README.md"].decode()
    assert card_errors(card) == []
    assert f'AutoModelForCausalLM.from_pretrained("{REPO}")' in card
    assert "swap.json" in done.stderr  # named as not uploaded

    model = load_model(str(swapped))
    assert hf_posswap.is_swapped(model)
    with torch.no_grad():
        expected = model(**load_tokenizer("demo:gpt2")(TEXT, return_tensors="pt")).logits[0, -1].double()
    loaded = run("-c", LOGITS, REPO, TEXT)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    name, limit, logits = json.loads(loaded.stdout.splitlines()[-1])
    assert (name, limit) == ("PosSwapGPT2LMHeadModel", int(1e30))
    assert torch.equal(torch.tensor(logits, dtype=torch.float64), expected)

    refused = run("-c", WITHOUT, REPO)
    first, second = [line for line in refused.stdout.splitlines() if line.startswith("refused:")]
    assert "Please pass the argument `trust_remote_code=True` to allow custom code to be run" in first
    assert "Run `pip install hf_posswap`" in second

    everything = done.stdout + done.stderr + loaded.stdout + loaded.stderr + refused.stdout + refused.stderr
    assert TOKEN not in everything
    assert contains(tmp_path, TOKEN) == []
    assert all(TOKEN.encode() not in content for content in files.values())


PUSH_MODEL = """
import sys, hf_posswap
from transformers import AutoTokenizer
model = hf_posswap.AutoModelForCausalLM.from_pretrained("you/gpt2-books", pos_scheme="alibi:layers=0+2")
commit = model.push_to_hub("gpt2-alibi", private=True, commit_message="Two layers", tags=["books"])
print(commit.oid)
model.save_pretrained("again", push_to_hub=True, repo_id="you/again")
"""


@pytest.mark.slow
def test_a_model_pushes_itself_with_base_revision_and_licence(
    hub: HubServer, run: Run, gpt2_books_path: Path, tmp_path: Path
) -> None:
    names = ("config.json", "generation_config.json", "model.safetensors", "README.md")
    base = hub.add(f"{OWNER}/gpt2-books", {name: (gpt2_books_path / name).read_bytes() for name in names})
    done = run("-c", PUSH_MODEL)
    assert done.returncode == 0, done.stderr[-3000:]
    commit = hub.repositories[REPO].head("main")
    assert commit is not None
    assert (commit.oid, commit.message) == (done.stdout.split()[-1], "Two layers")
    for name in (REPO, f"{OWNER}/again"):
        files = hub.files(name)
        card = files["README.md"].decode()
        assert card_errors(card) == []
        for fact in (
            f"base_model: {OWNER}/gpt2-books", "license: apache-2.0", "pipeline_tag: text-generation",
            "library_name: transformers", "- pos-scheme:alibi", base, "layers 0, 2 of 6",
            "The swap took effect: on 64 random tokens it moved the logits by",
        ):  # fmt: skip
            assert fact in card, fact
        assert b"hf_posswap.modeling" in files["modeling_posswap.py"]
    assert "- books" in hub.files(REPO)["README.md"].decode()
    entry = json.loads(hub.files(REPO)["config.json"])["pos_scheme"]
    assert entry["base_revision"] == base
    assert entry["base_source"] == "hub"
    assert TOKEN not in done.stdout + done.stderr
    assert contains(tmp_path, TOKEN) == []


def test_a_private_model_shows_itself_to_its_owner_only(
    client: HubServer, swapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_folder(swapped, Target(REPO, private=True))
    assert huggingface_hub.hf_hub_download(REPO, "config.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-of-a-stranger")
    for token in (READER_TOKEN, False):
        with pytest.raises(RepositoryNotFoundError):
            huggingface_hub.hf_hub_download(REPO, "config.json", token=token)


def test_the_remote_code_is_written_anew(client: HubServer, swapped: Path) -> None:
    (swapped / "modeling_posswap.py").write_text("import os\nos.system('true')\n")
    push_folder(swapped, Target(REPO))
    assert client.files(REPO)["modeling_posswap.py"].decode() == remote_code_of(architecture_named("gpt2"))


def test_weights_of_an_earlier_upload_do_not_stay(client: HubServer, swapped: Path, tmp_path: Path) -> None:
    push_folder(swapped, Target(REPO))
    model = load_model(str(swapped))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4MB")
    done = push_folder(tmp_path / "sharded", Target(REPO))
    weights = {name for name in client.files(REPO) if name.endswith(".safetensors")}
    assert len(weights) > 1
    assert "model.safetensors" not in weights
    assert "model.safetensors.index.json" in done.files
    push_folder(swapped, Target(REPO))
    assert {name for name in client.files(REPO) if "safetensors" in name} == {"model.safetensors"}


def test_branches_and_pull_requests(client: HubServer, swapped: Path) -> None:
    push_folder(swapped, Target(REPO, revision="try"))
    assert client.files(REPO) == {}
    assert "config.json" in client.files(REPO, "try")
    done = push_folder(swapped, Target(REPO, create_pr=True))
    assert done.commit.pr_url.endswith("/discussions/1")
    assert client.files(REPO) == {}
    assert "config.json" in client.files(REPO, "refs/pr/1")

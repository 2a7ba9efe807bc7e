"""What is not published: other folders, pickles, files from elsewhere, secrets, checkpoints that are not whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_posswap
from hf_posswap.hub import HubError, card_of
from hf_posswap.hub.checkpoint import read_checkpoint
from tests.matrix.cells import small_model

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 32


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def outside(folder: Path) -> Path:
    secret = folder.parent / "secret.json"
    secret.write_text("{}")
    return secret


def link(name: str) -> Callable[[Path], None]:
    def replace_by_link(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        os.symlink(outside(folder), folder / name)

    return replace_by_link


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def lose_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if "wpe" not in name}, path, metadata={"format": "pt"})


def change_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"transformer.wpe.weight": torch.zeros(2, 256)}, path, metadata={"format": "pt"})


def entry(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change_config(folder, pos_scheme=config["pos_scheme"] | changes)

    return change


def many_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"transformer.wpe.weight": "../../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


REFUSALS: list[tuple[str, Callable[[Path], object], str]] = [
    ("stock", lambda f: change_config(f, model_type="gpt2"), "model of type 'gpt2' that was not swapped"),
    ("no config", lambda f: (f / "config.json").unlink(), "has no config.json"),
    ("no JSON", lambda f: (f / "config.json").write_text("{"), "cannot read 'config.json'"),
    ("list", lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "no model.safetensors: there are no weights"),
    ("bin", lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80\x04."), "holds pickled files: 'pytorch_model.bin'"),
    ("pt", lambda f: (f / "weights.PT").write_bytes(b"\x80\x04."), "holds pickled files: 'weights.PT'"),
    ("pth", lambda f: (f / "x.pth").write_bytes(b""), "Loading one can run any code"),
    ("disguise", lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04."), "is no whole safetensors file"),
    ("cut", cut_weights, "is no whole safetensors file"),
    ("lost", lose_weight, "weight 'transformer.wpe.weight' of scheme 'alibi' is missing"),
    ("shape", change_shape, r"in shape \[2, 256\], and has to have shape \[1, 256\]"),
    ("index", many_weights, r"names \['../../elsewhere.safetensors'\], but the folder has"),
    ("link", link("tokenizer.json"), "is a link to .*secret.json', outside of the folder"),
    ("config link", link("config.json"), "is a link to .*secret.json', outside of the folder"),
    ("card link", link("README.md"), "is a link to .*secret.json', outside of the folder"),
    ("figure link", link("figures/a.png"), "is a link to .*secret.json', outside of the folder"),
    ("figure", lambda f: (f / "compare.png").write_text("<script>"), "is named a picture but is none"),
    ("folder", lambda f: (f / "vocab.json").mkdir(), "'vocab.json' in .* is no file"),
    ("secret", lambda f: change_config(f, note="hf_" + "a" * 34), "looks like an access token"),
    ("code", lambda f: change_config(f, auto_map={"AutoModel": "evil--repo.Model"}), "code that is not hf_posswap's"),
    ("configs", lambda f: change_config(f, configuration_files=["config.4.0.0.json"]), "points to other config files"),
    ("entry", entry(name="allibi"), "is not valid: .*unknown positional scheme 'allibi'"),
    ("options", entry(options={"form": "symmetric"}), "does not fit the model: .* form 'symmetric' is for encoders"),
    ("class", lambda f: change_config(f, architectures=["os"]), "must name a swapped class, PosSwap…"),
    ("other class", lambda f: change_config(f, architectures=["PosSwapBertModel"]), "no model of PosSwapGPT2Config"),
    ("results", lambda f: (f / "compare.json").write_text("nope"), "cannot read 'compare.json'"),
]


@pytest.mark.parametrize(("spoil", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_what_is_not_published(swapped: Path, spoil: Callable[[Path], object], message: str) -> None:
    card_of(swapped)
    spoil(swapped)
    with pytest.raises(HubError, match=message):
        card_of(swapped)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="is no folder"):
        card_of(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match="is no folder"):
        card_of(tmp_path / "file")


def test_only_files_known_by_name_are_published(swapped: Path) -> None:
    trainers = ("training_args.bin", "optimizer.pt", "rng_state.pth")
    others = ("notes.txt", "train.csv", ".env", "healing.json.bak", "weird name.png", "extra.safetensors")
    for name in (*trainers, *others):
        (swapped / name).write_bytes(b"{}")
    (swapped / "checkpoint-0000001").mkdir()
    (swapped / "checkpoint-0000001" / "optimizer.safetensors").write_bytes(b"")
    (swapped / "figures").mkdir()
    for name in ("compare.png", "figures/loss.png", "figures/positions.png"):
        (swapped / name).write_bytes(PNG)
    (swapped / "figures" / "data.csv").write_text("")
    contents = read_checkpoint(swapped).contents
    assert contents.figures == ("compare.png", "figures/loss.png", "figures/positions.png")
    assert set(contents.files) - set(contents.figures) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert {*trainers, *others, "checkpoint-0000001", "swap.json"} <= set(contents.left)


@pytest.mark.parametrize(("name", "causal"), [("gpt2", True), ("llama", True), ("bert", False)])
@pytest.mark.parametrize("scheme", ["t5:per_layer=true", "learned:length=300", "rope:yarn"])
def test_every_family_and_kind_of_scheme_passes(name: str, causal: bool, scheme: str, tmp_path: Path) -> None:
    hf_posswap.swap(small_model(name, causal), scheme).save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert {weight.device.type for weight in checkpoint.model.parameters()} == {"meta"}
